"""Why a site's work is missing from a round, in words that say what to do next."""

from collections.abc import Mapping

NO_REPLY = "no_reply"
INVALID_REPLY = "invalid_reply"
NOT_DECLARED = "not_declared"

# What each code means, and the way out. All but the last three are said by sites.
_MEANING = {
    "invalid_request": (
        "did not understand the request",
        "Run the same version of cohortium at the hub and at the site.",
    ),
    "not_approved": (
        "has not approved this experiment",
        "Ask its operator to review and approve it.",
    ),
    "approval_used_up": (
        "has spent all rounds it approved",
        "Ask its operator to approve the experiment again, or run fewer rounds.",
    ),
    "budget": (
        "has too little privacy budget left",
        "Run fewer rounds, ask for more noise, or run without this site.",
    ),
    "equivocation": (
        "was asked for the same round twice with different content",
        "Start a new run; if you did not repeat this one, ask who else can send to the site.",
    ),
    "not_from_hub": (
        "knows another hub than the one that asks",
        "Compare this hub's key with the one in the site file: cohortium hub status.",
    ),
    "expired": (
        "finds that the request came too late, or from a clock that is ahead",
        "Compare the clocks of hub and site, or raise the deadline.",
    ),
    "lost": (
        "was stopped after it had paid for this round",
        "Declare more algorithm.retries: each repeat of a round is paid for beforehand.",
    ),
    "behind": (
        "has restored an older copy of its ledger",
        "Ask its operator to bring the newest copy back, or to run 'cohortium site recover'.",
    ),
    "round_failed": (
        "failed; only its own log says why",
        "Ask its operator to read the site's log.",
    ),
    NO_REPLY: (
        "did not answer in time",
        "Check that the site is running and connected, or raise the deadline.",
    ),
    INVALID_REPLY: (
        "sent a reply that fails validation",
        "Ask its operator to update the site's software, or run without this site.",
    ),
    NOT_DECLARED: (
        "is not one of the sites that the experiment names",
        "Name it under cohort.sites, or disconnect it.",
    ),
}


def explain(refused: Mapping[str, str], details: Mapping[str, str]) -> str:
    """Return one sentence a site, and each way out once.

    Args:
        refused: Site name to code.
        details: Site name to what exactly was wrong with its reply, where that is known.
    """
    who = [_who(site, code, details.get(site)) for site, code in sorted(refused.items())]
    ways_out = dict.fromkeys(_MEANING[code][1] for _, code in sorted(refused.items()))
    return " ".join([*who, *ways_out])


def _who(site: str, code: str, detail: str | None) -> str:
    exactly = f": {detail}" if detail else ""
    return f"{site} {_MEANING[code][0]} ({code}{exactly})."
