"""What the numbers mean, for readers who are not mathematicians; and what they leave out."""

from collections.abc import Iterator

from federation.audit import report_words as words
from federation.audit.report import BoardReport, ExperimentAccount, Share, SiteAccount
from federation.audit.report_html import bullets, letter, table
from federation.audit.report_numbers import (
    FALSE_POSITIVE_RATE,
    Attack,
    advantage,
    true_positives,
)

# The scale that every board sees, whatever its sites promised.
SCALE = (1.0, 3.0, 8.0)
_SCALE_DELTA = 1e-5
NOT_PROTECTED = (
    "<strong>A person whose data are at several sites.</strong> Each site keeps its own limit; for "
    "such a person they add up. No site can see that it happens.",
    "<strong>One person under two identifiers that nobody has linked.</strong> They count as two "
    "people, and each of them uses up the limit.",
    "<strong>Relatives.</strong> What a person’s images or genes tell of their family is protected "
    "for that person’s own contribution only.",
    "<strong>What is true of everybody alike.</strong> If a model learns that smoking shows in "
    "lungs, that is learned of smokers who never took part, too. This is what research is for; no "
    "limit here prevents it.",
    "<strong>Time.</strong> How long a round takes may depend a little on who was drawn for it; "
    "no figure here counts that.",
    "<strong>Rounding in computers.</strong> The proofs are about real numbers; noise is added in "
    "floating point, whose last digits are not covered.",
    "<strong>That noise was drawn at all.</strong> Receipts and ledgers prove what was charged and "
    "what was sent. Whether the site’s computer really added the noise they do not prove: the "
    "self-audit’s verdict stands beside them for that.",
)


def attack_words(site: SiteAccount) -> str:
    """Return a sentence on what was really run at one site."""
    if site.whole.why_not or not site.told.points:
        return ""
    right = words.of_100((1 + site.whole.advantage) / 2)
    return (
        f"What has really been run at {words.text(site.name)} keeps them to at most {right} of "
        "100, if nothing had been chosen adaptively."
    )


def meaning(report: BoardReport) -> str:
    """Return the scale, then each site's promise and each experiment on it."""
    return (
        "<p>What has left cannot be called back, so the question is what it tells about one "
        "person. Take somebody who has it all, knows everything about a person, and only wants to "
        "know <em>were this person’s data used?</em> Whoever can hardly answer this learns hardly "
        "anything else from that person’s data. Two figures say how well <em>any</em> such attempt "
        "can do, with any computer, now or later:</p>\n"
        + bullets(
            (
                "<strong>Advantage</strong>: how many more of those who took part are recognised "
                "than of those who did not are wrongly accused. 0 is a coin, 1 is certainty.",
                "<strong>Recognised at 1 % false alarms</strong>: of 100 people who took part, how "
                "many are recognised by somebody who wrongly accuses only 1 of 100 others. A guess "
                "recognises 1.",
            )
        )
        + _scale(report)
        + _vacuous(report)
        + "<h3>What was really run</h3>\n"
        + "<p>A promise covers the worst that any computation within it could do. What these "
        "experiments did is on record, so it can be bounded more closely (with privacy loss "
        "distributions, PLD).</p>\n"
        + "".join(_runs(one) for one in report.experiments)
        + _told_counts(report)
    )


def _scale(report: BoardReport) -> str:
    limits: dict[tuple[float, float], list[str]] = {
        (epsilon, _SCALE_DELTA): [] for epsilon in SCALE
    }
    for site in report.sites:
        if site.policy is not None:
            key = (site.policy.epsilon, site.policy.delta)
            limits.setdefault(key, []).append(words.text(site.name))
    rows = [_scale_row(*key, names) for key, names in sorted(limits.items())]
    return table(
        "What a limit promises at worst, whatever is computed within it",
        ("limit ε", "#advantage", "#right guesses of 100", "#recognised of 100", ">in words"),
        rows,
    )


def _scale_row(epsilon: float, delta: float, sites: list[str]) -> tuple[str, ...]:
    most = advantage(epsilon, delta)
    whose = f": <strong>the limit of {words.listed(sites)}</strong>" if sites else ""
    return (
        f"{epsilon:g}{whose}",
        words.advantage(most),
        words.of_100((1 + most) / 2),
        words.of_100(true_positives(epsilon, delta, FALSE_POSITIVE_RATE)),
        in_words(epsilon),
    )


def in_words(epsilon: float) -> str:
    """Return what to make of a limit.

    >>> in_words(8.0)
    'nearly vacuous: taken alone it rules out almost nothing'
    """
    if epsilon <= 0.5:
        return "strong: hardly better than a guess"
    if epsilon <= 1:
        return "good: better than a guess, but hardly ever sure of anybody"
    if epsilon < 2:
        return "fair: clearly better than a guess, seldom sure of anybody"
    if epsilon < 6:
        return "weak: an attacker could be right about most people"
    return "nearly vacuous: taken alone it rules out almost nothing"


def _vacuous(report: BoardReport) -> str:
    high = [site for site in report.sites if site.policy and site.policy.epsilon >= 6]
    named = words.listed([words.text(site.name) for site in high[:5]])
    here = f" That is so at {named}." if high else ""
    return (
        "<p>The scale is not even: at 8 the promise is nearly vacuous, since it would allow an "
        f"attacker an advantage of 0.9993.{here} What protects people at such limits is what was "
        "really computed, below, and not the promise. Attacks known today do worse than "
        "either.</p>\n"
    )


def _runs(one: ExperimentAccount) -> str:
    rows = list(_run_rows(one))
    if not rows:
        return ""
    columns = (
        "site",
        "#epsilon by PLD",
        "#advantage",
        "#recognised of 100",
        "#recognised, by the filter’s ε alone",
    )
    table_ = table(f"Experiment {one.letter}, {words.visible(one.name)}: at most", columns, rows)
    return table_ + _run_sentence(one)


def _run_rows(one: ExperimentAccount) -> Iterator[tuple[str, ...]]:
    for site, share in _shares(one):
        policy = site.policy
        if policy is None:
            continue
        # Of what was charged, added up here: the epsilon in an approval is the site's word.
        most = true_positives(share.epsilon, policy.delta, FALSE_POSITIVE_RATE)
        alone = f"{words.of_100(most)} (ε {words.spent(share.epsilon)})"
        yield (words.text(site.name), *_attack_cells(share.attack), alone)


def _shares(one: ExperimentAccount) -> Iterator[tuple[SiteAccount, Share]]:
    for site, _ in one.at_sites:
        for share in site.shares:
            if share.experiment == one.digest:
                yield site, share


def _attack_cells(attack: Attack) -> tuple[str, str, str]:
    if attack.why_not:
        return (f"not computed: {words.text(attack.why_not)}", "–", "–")
    return (
        words.spent(attack.epsilon),
        words.advantage(attack.advantage),
        words.of_100(attack.true_positives),
    )


def _run_sentence(one: ExperimentAccount) -> str:
    known = [share.attack for _, share in _shares(one) if not share.attack.why_not]
    if not known:
        return ""
    worst = max(known, key=lambda attack: attack.true_positives)
    return (
        "<p>In words: whoever wrongly accuses 1 of 100 people who were not in "
        f"{letter(one.letter)} recognises at most {words.of_100(worst.true_positives)} of 100 who "
        "were.</p>\n"
    )


def _told_counts(report: BoardReport) -> str:
    told = [site for site in report.sites if site.counts_told]
    if not told:
        return ""
    rows = [_counted_row(site) for site in told]
    return (
        "<h3>Where the number of people is released</h3>\n"
        "<p>These sites let the number of their subjects leave, exactly or rounded to ten. Whether "
        "somebody is <em>among</em> them cannot be hidden then for sure from whoever knows all the "
        "others (one person more may turn “about 40” into “about 50”). What is "
        "still protected is <em>who</em>: exchanging one person for another changes what left by "
        "at most this (“replace one”, computed by PLD; the promise covers it as leaving out one "
        "person and adding another: twice ε, and δ times e to the ε plus 1).</p>\n"
        + table(
            "Exchanging one person for another, over everything charged, as if nothing had been "
            "chosen adaptively",
            ("site", "#epsilon by PLD", "#advantage", "#recognised of 100", "#promised ε"),
            rows,
        )
    )


def _counted_row(site: SiteAccount) -> tuple[str, ...]:
    attack = site.whole_replace_one or Attack(why_not="no policy")
    promised = f"{2 * site.policy.epsilon:g}" if site.policy else "–"
    return (words.text(site.name), *_attack_cells(attack), promised)


# What "spent" means, and what is not protected


def what_spent_means(report: BoardReport) -> str:
    """Return the three figures that are easily mixed up, and each site's."""
    rows = []
    for site in report.sites:
        policy, pld = site.policy, site.verdict.pld
        if policy is not None:
            rows.append(
                (
                    words.text(site.name),
                    f"{policy.epsilon:g} (δ {words.chance(policy.delta)})",
                    words.spent(site.spent),
                    words.left(policy.epsilon - site.held),
                    words.spent(pld.value) if pld.value is not None else words.text(pld.note),
                )
            )
    columns = (
        "site",
        "#guaranteed: the limit",
        "#filter: spent",
        "#filter: left",
        "#PLD across all",
    )
    return (
        bullets(
            (
                "<strong>The guarantee is the limit (ε, δ).</strong> It holds for all experiments "
                "together, now and in future, even if each is chosen after seeing the results of "
                "those before.",
                "<strong>Spent and left are the state of the filter</strong>, which admits or "
                "refuses rounds. They say how much room there is; they are not themselves the "
                "guarantee.",
                "<strong>PLD within one experiment is a guarantee</strong>, since its plan was "
                "fixed before its first round.",
                "<strong>PLD across experiments is shown as if nothing had been chosen "
                "adaptively.</strong> If somebody designed the second experiment after seeing the "
                "first one’s model, as people do, it is an indication and no guarantee.",
            )
        )
        + table("The three figures, site by site", columns, rows)
        + "<p>“Left” leaves out what approved runs still hold.</p>\n"
    )


def not_protected() -> str:
    """Return what no figure here covers."""
    return "<p>No limit and no verdict on this page covers the following.</p>\n" + bullets(
        NOT_PROTECTED
    )
