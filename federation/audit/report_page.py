"""The report as one HTML file: no script, and nothing is fetched from anywhere."""

from math import isinf

from federation.audit import report_words as words
from federation.audit.report import BoardReport, SiteAccount
from federation.audit.report_checks import checks, happenings, software
from federation.audit.report_html import chip, facts, letter, section, verdict
from federation.audit.report_meaning import attack_words, meaning, not_protected, what_spent_means
from federation.audit.report_numbers import advantage
from federation.audit.report_plots import bar
from federation.audit.report_style import STYLE, content_policy
from federation.audit.report_training import budgets, training

_MOST_OF_A_PROBLEM = 160
_CONTENTS = (
    ("training", "Who trained what, on whose data, and why"),
    ("budget", "How much of the promise is used"),
    ("meaning", "What the numbers mean"),
    ("spent", "What “spent” means"),
    ("unprotected", "What is not protected"),
    ("events", "Refusals, withdrawals, retention"),
    ("checks", "What was checked, and how far it can be believed"),
    ("software", "Software, keys and digests"),
)


def page(report: BoardReport) -> str:
    """Return the page. Everything that was read from files is escaped."""
    titles = dict(_CONTENTS)
    bodies = {
        "training": training(report),
        "budget": budgets(report),
        "meaning": meaning(report),
        "spent": what_spent_means(report),
        "unprotected": not_protected(),
        "events": happenings(report),
        "checks": checks(report),
        "software": software(report),
    }
    parts = "".join(section(name, titles[name], body) for name, body in bodies.items())
    glance = section("glance", "At a glance", _glance(report), "glance")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{content_policy()}">
<meta name="referrer" content="no-referrer">
<title>Privacy report: {words.plain(_title(report))}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
{_header(report)}<main id="main">
{glance}{_contents()}{parts}</main>
{_footer(report)}</body>
</html>
"""


def _title(report: BoardReport) -> str:
    names = [site.name for site in report.sites[:3]]
    more = len(report.sites) - len(names)
    return words.listed([*names, f"{more} more"] if more > 0 else names) or "no ledger"


def _header(report: BoardReport) -> str:
    sites = words.counted(len(report.sites), "site")
    experiments = words.counted(len(report.experiments), "experiment")
    return (
        '<header>\n<p class="eyebrow">Privacy report for the ethics board</p>\n'
        f"<h1>What training at {sites} cost people’s privacy</h1>\n"
        f'<p class="muted">{experiments}; made on {words.day(report.made_at)} from '
        f"{words.counted(len(report.sites), 'ledger')} and "
        f"{words.counted(report.receipts, 'signed receipt')}, without access to any image.</p>\n"
        f"</header>\n"
    )


def _contents() -> str:
    lines = "".join(f'<li><a href="#{name}">{title}</a></li>\n' for name, title in _CONTENTS)
    return f'<nav aria-label="Contents">\n<ol>\n{lines}</ol>\n</nav>\n'


def _footer(report: BoardReport) -> str:
    return (
        f"<footer>\n<p>Made by {words.text(report.software)}. This file is complete in itself: it "
        "loads nothing and runs nothing. Text in it that sites, operators or researchers wrote is "
        "shown as they wrote it. <code>cohortium audit verify</code> repeats every check from the "
        "same files.</p>\n</footer>\n"
    )


# At a glance


def _glance(report: BoardReport) -> str:
    cards = "".join(_card(report, site) for site in report.sites)
    return f'{_overall(report)}<div class="cards">\n{cards}</div>\n{_in_plain_words(report)}'


def _overall(report: BoardReport) -> str:
    if not report.sites:
        return verdict("bad", "Nothing to report.", "No ledger was found in what was given.")
    if report.contradicted:
        return verdict(
            "bad",
            "Contradicted.",
            "Something in these files speaks against something else. Do not rely on the figures "
            'below before it is cleared up: see <a href="#checks">what was checked</a>.',
        )
    if report.report.ok:
        return verdict(
            "good",
            "Verified.",
            "Every ledger is whole, is signed with a key that you trust, and adds up when "
            "calculated anew. That noise was really drawn is not proven by this.",
        )
    return verdict(
        "warn",
        "Consistent, identity unknown.",
        "The files agree with each other, but nobody said which keys to trust, so anybody could "
        "have written them. Ask each site for its fingerprint and pass it with "
        "<code>--trust</code>.",
    )


def site_chip(site: SiteAccount) -> str:
    """Return one site's verdict."""
    if site.verdict.problems or site.changed:
        return chip("bad", "contradicted")
    return chip("good", "verified") if site.verdict.ok else chip("warn", "identity unknown")


def _card(report: BoardReport, site: SiteAccount) -> str:
    head = (
        f'<article class="card">\n<h3>{words.text(site.name)}</h3>\n<p>{site_chip(site)}</p>\n'
        f"<p>{_whose(site)}</p>\n{_first_problem(site)}"
    )
    policy = site.policy
    if policy is None:
        return f"{head}<p>The file does not say what was promised.</p>\n</article>\n"
    limit = f"{policy.epsilon:g}"
    used = words.share_of(site.spent, policy.epsilon)
    held = words.share_of(site.held, policy.epsilon)
    promised = (
        f"each person loses at most {limit} of privacy (ε), over all experiments for ever, but "
        f"for odds of {words.chance(policy.delta)} (δ)"
    )
    return (
        f'{head}<p class="figure"><b>{words.spent(site.spent)}</b> '
        f"<span>{'spent, of' if isinf(site.spent) else 'of'} {limit}"
        f"{' promised' if isinf(site.spent) else ' spent'}</span></p>\n"
        f"{bar(used, held)}"
        f'<p class="small muted">{_used(site, used, held)}</p>\n'
        + facts([("Promised", promised), ("Used by", _used_by(report, site))], "stack")
        + "</article>\n"
    )


def _first_problem(site: SiteAccount) -> str:
    if not site.verdict.problems:
        return ""
    first, number = site.verdict.problems[0], len(site.verdict.problems)
    cut = first if len(first) <= _MOST_OF_A_PROBLEM else f"{first[:_MOST_OF_A_PROBLEM]}…"
    more = f" (and {number - 1:,} more)" if number > 1 else ""
    return f'<p class="small bad">{words.text(cut)}{more}</p>\n'


def _whose(site: SiteAccount) -> str:
    whose = f"People in <strong>{words.text(site.verdict.population or 'an unnamed set')}</strong>"
    note = next((h for h in site.told.happenings if h.what == "declaration"), None)
    if note is None:
        return whose
    return f"{whose}, declared by {words.text(note.by)} to be of no human subjects"


def _used(site: SiteAccount, used: float, held: float) -> str:
    if isinf(site.spent):
        return "Rounds were trained without protection, so nothing limits what left."
    if site.policy and site.spent > site.policy.epsilon:
        return "Past the limit: nothing more may be charged."
    told = f"{used:.0%} of the limit."
    if held > used + 0.004:
        told += f" Approved runs hold more: up to {words.spent(site.held)} (the lighter part)."
    return told


def _used_by(report: BoardReport, site: SiteAccount) -> str:
    if not site.shares:
        return "no experiment yet"
    names = {one.digest: one.name for one in report.experiments}
    parts = [
        f"{letter(report.letters[share.experiment])} {words.text(names[share.experiment])} "
        f"({words.counted(share.charges, 'round')})"
        for share in site.shares[:4]
    ]
    more = len(site.shares) - len(parts)
    return "<br>".join([*parts, f"and {more} more"] if more > 0 else parts)


def _in_plain_words(report: BoardReport) -> str:
    known = [site for site in report.sites if site.policy is not None]
    if not known:
        return ""
    worst = max(known, key=lambda site: site.policy.epsilon if site.policy else 0.0)
    policy = worst.policy
    if policy is None:
        return ""
    right = words.of_100((1 + advantage(policy.epsilon, policy.delta)) / 2)
    which = f"The limit of {policy.epsilon:g}"
    if len({site.policy.epsilon for site in known if site.policy}) > 1:
        which = f"The highest limit, {policy.epsilon:g} at {words.text(worst.name)},"
    vacuous = ", <strong>which by itself promises next to nothing</strong>"
    return (
        '<p class="lead">In plain words: suppose somebody has every model that left a site, and '
        "knows everything about a person but whether that person’s data were used. A coin would "
        f"guess it right 50 times in 100. {which} keeps such guesses to at most {right} of 100"
        f"{vacuous if policy.epsilon >= 6 else ''}. {attack_words(worst)}</p>\n"
        + _without_any(known)
    )


def _without_any(sites: list[SiteAccount]) -> str:
    bare = [words.text(site.name) for site in sites if isinf(site.spent)]
    if not bare:
        return ""
    return (
        f'<p class="lead"><strong>At {words.listed(bare)} rounds were trained without noise.'
        "</strong> "
        "Nothing limits what these tell of anybody, whatever was promised.</p>\n"
    )
