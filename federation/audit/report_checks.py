"""What else happened, what was checked and how far it can be believed, and with which software."""

from collections.abc import Iterator, Sequence

from federation.audit import report_words as words
from federation.audit.report import BoardReport, Claim, SiteAccount
from federation.audit.report_html import bullets, chip, facts, letter, table
from federation.audit.report_records import Happening
from federation.audit.report_sources import SelfAuditSeen

_REFUSED = {
    "not_approved": "nobody had approved it",
    "approval_used_up": "every approved round had been charged",
    "budget": "it would have passed the limit",
    "equivocation": "the hub asked twice for one round with different content",
    "lost": "that round had been charged and lost before",
    "behind": "the site’s ledger had fallen behind and was locked",
    "operator": "the operator declined",
}
_NAMES = {
    "loss": "round lost",
    "withdrawal": "approval withdrawn",
    "closing": "run closed",
    "key_rotation": "new signing key",
    "recovery": "ledger recovered",
    "merge": "ledger merged in",
    "merged": "ledger ended: merged into another",
    "declaration": "declared to be of no human subjects",
    "exclusion": "people excluded",
    "purge": "cache purged",
}
_MEANS = {
    "loss": "charged, and nothing left; the charge stays",
    "closing": "no further round may be charged for it",
    "key_rotation": "signed with the old key, and the new one’s own proof",
    "recovery": "everything that could have left unrecorded was charged, and every approval ended",
    "merge": "another ledger of the same people was charged here, too",
    "merged": "the budget goes on in the other ledger",
    "exclusion": "left out of every later round; what was charged before stays",
    "purge": "copies for training were deleted",
}
STATUS = {
    "recomputed": ("good", "good", "calculated anew from the records, by other software"),
    "signed": ("good", "signed", "the site’s signature on it was checked; its content is its word"),
    "asserted": ("warn", "warn", "somebody says so; nothing given here shows it"),
    "contradicted": ("bad", "bad", "something given here speaks against it"),
}
_AUDITS = {
    "no_evidence_of_violation": ("good", "no evidence of violation"),
    "inconclusive": ("warn", "inconclusive"),
    "violation": ("bad", "violation"),
}


# What else happened


def happenings(report: BoardReport) -> str:
    """Return refusals, withdrawals and all else that is no charge, site by site; then retention."""
    return "".join(_site_happenings(report, site) for site in report.sites) + _retention(report)


def _site_happenings(report: BoardReport, site: SiteAccount) -> str:
    rows = [_happening(report, one) for one in site.told.happenings]
    name = words.text(site.name)
    if not rows:
        nothing = "No refusal, withdrawal, loss, recovery or purge is recorded."
        return f"<h3>{name}</h3>\n<p>{nothing}</p>\n"
    caption = f"What {words.visible(site.name)} recorded beside rounds, in its order"
    columns = ("what", "when", "experiment", ">why, and by whom")
    return f"<h3>{name}</h3>\n{table(caption, columns, rows)}"


def _happening(report: BoardReport, one: Happening) -> tuple[str, ...]:
    times = f" ({one.count:,} times)" if one.count > 1 else ""
    experiment = report.letters.get(one.experiment, "")
    run = f" run {words.text(one.run)}" if one.run else ""
    shown = (
        letter(experiment)
        if experiment
        else (words.code(one.experiment, 8) if one.experiment else "")
    )
    return (
        f"{_happening_name(one)}{times}",
        words.days(one.at, one.until),
        f"{shown}{run}" or "–",
        _why(one) or "–",
    )


def _happening_name(one: Happening) -> str:
    if one.kind == "refusal":
        return "refused"
    return _NAMES.get(one.what if one.kind == "note" else one.kind, words.text(one.kind))


def _why(one: Happening) -> str:
    key = one.what if one.kind == "note" else one.kind
    parts = [_REFUSED.get(one.what, words.text(one.what))] if one.kind == "refusal" else []
    parts += [_MEANS[key]] if key in _MEANS else []
    parts += [f"“{words.text(one.reason)}”"] if one.reason else []
    parts += [f"by {words.text(one.by)}"] if one.by else []
    return "; ".join(parts)


def _retention(report: BoardReport) -> str:
    lines = []
    for site in report.sites:
        found = [h for h in site.told.happenings if h.kind == "note"]
        purges = [h for h in found if h.what == "purge"]
        exclusions = sum(h.what == "exclusion" for h in found)
        state = (
            f"{words.counted(len(purges), 'purge')} recorded, the newest on "
            f"{words.day(purges[-1].at)}"
            if purges
            else "no purge is recorded: take it that copies for training are still there"
        )
        lines.append(
            f"<strong>{words.text(site.name)}</strong>: {state}; "
            f"{words.counted(exclusions, 'exclusion') if exclusions else 'no exclusion'} of people "
            "is recorded."
        )
    return (
        "<h3>How long data are kept</h3>\n"
        "<p>Training reads a copy (a cache) that never leaves the site and exists until the site "
        "purges it. Ledgers and receipts are kept for good: they hold no images, no names and no "
        "counts of people.</p>\n" + bullets(lines)
    )


# What was checked


def checks(report: BoardReport) -> str:
    """Return each site's claims with what is known of them, and what the verifier wrote."""
    return (
        _legend()
        + "".join(_site_checks(site) for site in report.sites)
        + _between(report)
        + "<h3>Was noise really drawn?</h3>\n"
        "<p>Receipts do not prove that noise was drawn. Each site can audit itself while it "
        "trains: it plants invented people, and looks whether they are as hidden as promised. Its "
        "verdict is the "
        "site’s own word and is signed by nobody.</p>\n" + _audits(report)
    )


def _legend() -> str:
    return bullets(
        [f"{_status_chip(name)} {text}" for name, (_, _, text) in STATUS.items()], "plain"
    )


def _status_chip(name: str) -> str:
    kind, picture, _ = STATUS.get(name, ("warn", "warn", ""))
    return chip(kind, words.plain(name), picture)


def _site_checks(site: SiteAccount) -> str:
    verdict = site.verdict
    name = words.text(site.name)
    problems = list(verdict.problems)
    if site.changed:
        problems.append("the file was written to while this report was made: make it again")
    return (
        f"<h3>{name}: {words.text(verdict.summary)}</h3>\n"
        + _claims(site, site.claims)
        + _said("Problems, as the verifier wrote them", problems)
        + _said("Notes, as the verifier wrote them", verdict.notes)
    )


def _claims(site: SiteAccount, claims: Sequence[Claim]) -> str:
    if not claims:
        return "<p>The verifier states its verdict as a whole, not claim by claim.</p>\n"
    rows = [
        (words.text(claim.what), _status_chip(claim.status), words.text(claim.why))
        for claim in claims
    ]
    caption = f"{words.visible(site.name)}, claim by claim"
    return table(caption, ("claim", "what is known", ">what that rests on"), rows)


def _said(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h4>{title}</h4>\n{bullets([words.text(line) for line in lines], 'said')}"


def _between(report: BoardReport) -> str:
    found = _said("Problems", report.report.problems) + _said("Notes", report.report.notes)
    found += _said("Files that are no experiment", report.unread)
    return f"<h3>Between the files</h3>\n{found}" if found else ""


def _audits(report: BoardReport) -> str:
    rows = [
        (words.text(site.name), *_audit(report, site, audit))
        for site in report.sites
        for audit in site.self_audits
    ]
    if not rows:
        return "<p>No self-audit was given, so nothing here speaks to it.</p>\n"
    columns = ("site", "experiment", "verdict", "#rounds", ">as it words it")
    return table("What self-audits concluded", columns, rows) + _unnamed(report)


def _unnamed(report: BoardReport) -> str:
    if all(audit.site is not None for site in report.sites for audit in site.self_audits):
        return ""
    return (
        "<p>A file of a self-audit from an earlier version names the plan and not the site, so it "
        "stands beside every site that ran that plan.</p>\n"
    )


def _audit(report: BoardReport, site: SiteAccount, audit: SelfAuditSeen) -> tuple[str, ...]:
    of_plan = [a for a in site.told.approvals if a.record.body["plan_digest"] == audit.plan_digest]
    letters = dict.fromkeys(report.letters[approval.experiment] for approval in of_plan)
    kind, verdict = _AUDITS[audit.verdict]
    return (
        " ".join(letter(name) for name in letters),
        chip(kind, verdict),
        f"{audit.rounds:,}",
        f"{words.text(audit.statement)} ({words.text(audit.source)})",
    )


# With which software


def software(report: BoardReport) -> str:
    """Return versions, keys and digests, for whoever compares them."""
    return "".join(_site_software(site) for site in report.sites) + _digests(report)


def _site_software(site: SiteAccount) -> str:
    head = (
        f"{site.verdict.head[0]:,}, {words.code(site.verdict.head[1])}"
        if site.verdict.head
        else "none"
    )
    return f"<h3>{words.text(site.name)}</h3>\n" + facts(
        (
            (
                "Key",
                words.code(site.verdict.fingerprint) if site.verdict.fingerprint else "unknown",
            ),
            ("Newest record", head),
            ("File", words.text(site.verdict.path.name)),
            *_versions(site),
        )
    )


def _versions(site: SiteAccount) -> Iterator[tuple[str, str]]:
    installed = dict.fromkeys(a.record.body["software"] for a in site.told.approvals)
    if installed:
        codes = ", ".join(words.code(one, 16) for one in list(installed)[:8])
        yield "Installed, by digest", codes
    if site.told.versions:
        parts = [
            f"{words.text(name)} {words.listed([words.text(v) for v in sorted(found)[:8]])}"
            for name, found in sorted(site.told.versions.items())[:64]
        ]
        yield "Trained with", "; ".join(parts)


def _digests(report: BoardReport) -> str:
    rows = [
        (f"{letter(one.letter)} {words.text(one.name)}", words.code(one.digest))
        for one in report.experiments
    ]
    return table("Experiments by their digests", ("experiment", ">digest"), rows) if rows else ""
