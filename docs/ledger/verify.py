# ruff: noqa: I001, E401, E701, D101, D102, D103, PLR0912, PLR0915
# fmt: off
"""Check ledgers against format.md and grammar.txt: a second opinion, by no code of Cohortium's.

python verify.py [--trust FINGERPRINT]... [--receipts FILE]... [--closings FILE]... LEDGER...
prints one JSON object and exits with 0: all are verified, 1: not all, 2: wrong usage."""
import argparse, base64, hashlib, json, math, re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, rdp
FORMS: dict[str, str] = {}  # by name, what canonical JSON of that form matches
GRAMMAR = (Path(__file__).parent / "grammar.txt").read_text()
for name, sort, form in re.findall(r"^([a-z_?]+)( =|:) (.+)$", GRAMMAR, re.M):
    keys = sorted(pair.split("=") for pair in form.split()) if sort == ":" else []
    shape = r"\{" + ",".join(f'"{key}":<{of}>' for key, of in keys) + r"\}" if keys else form
    FORMS[name] = "(?a:" + re.sub("<([a-z_?]+)>", lambda m: FORMS[m[1]], shape) + ")"
TEXT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
def need(holds: object, otherwise: str) -> None:
    if not holds: raise ValueError(otherwise)
def canonical(value: dict, *but: str) -> bytes:
    return TEXT.encode({k: v for k, v in value.items() if k not in but}).encode()
def fits(value: dict, form: str) -> bool:
    return bool(m := re.fullmatch(FORMS[form], canonical(value).decode())) and m[0].isprintable()
def check(what: str, key: str, message: bytes, signature: str) -> None:
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    public.verify(bytes.fromhex(signature), f"cohortium {what} v1\0".encode() + message)
@cache
def cost(rate: float, noise: float, orders: tuple[int, ...]) -> list:  # of a step, an array
    step = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
    return rdp.RdpAccountant(orders).compose(step).rdp
def steps(events: list[dict], times: int = 1) -> Counter:  # by sampling rate and noise multiplier
    each = [((e.get("sampling_rate"), e.get("noise_multiplier")), e.get("steps", math.inf))
            for e in (events if times else ())]  # one unprotected event is as bad as any number
    return sum((Counter({of: number * times}) for of, number in each), Counter())

class Ledger:
    def __init__(self, path: str) -> None:
        self.path, self.population, self.problems, self.count_of = path, "", [], Counter()
        self.me, self.keys, self.hashes = {}, [], ["sha256:" + "0" * 64]
        self.approvals, self.runs, self.waiting, self.stated, self.totals = {}, set(), {}, {}, []
        self.total, self.recovered, self.seen = Counter(), Counter(), -1
        self.spent, self.paid, self.merges, self.shown = [], defaultdict(Counter), {}, set()
        try:
            with Path(path).open("rb") as file:
                while line := file.readline(65_536): self.read(line)
            need(self.keys, "missing")
        except Exception as problem:  # whatever a hostile file brings about
            self.problems.append(f"record {len(self.hashes) - 1}: {problem!r:.200}")
    def read(self, line: bytes) -> None:
        r = json.loads(line)
        kind, body, hashed = r["kind"], r["body"], canonical(r, "hash", "signature")
        need(canonical(r) + b"\n" == line, "not a whole line of canonical JSON")
        need(fits({**r, "body": None}, "record") and fits(body, kind), "malformed")
        need([r["seq"], r["previous"]] == [len(self.hashes) - 1, self.hashes[-1]], "out of place")
        need(r["hash"] == "sha256:" + hashlib.sha256(hashed).hexdigest(), "another hash")
        need(not self.count_of[r["salt"]], "the salt of another")
        need((kind == "genesis") != bool(self.keys) and not self.count_of["merged"], "misplaced")
        key = self.keys[-1] if self.keys else body["public_key"]
        check("ledger record", key, r["hash"].encode(), r["signature"])
        self.apply(kind, body, r, {**self.me, "public_key": key})
        self.hashes.append(r["hash"])
        self.count_of.update((kind, body.get("what"), r["salt"], r["hash"]))
    def apply(self, kind: str, body: dict, r: dict, by: dict) -> None:
        approval = self.approvals.get(body.get("experiment_digest"))
        need(approval or kind not in ("reservation", "charge", "withdrawal", "closing"), "not open")
        ran = kind not in ("charge", "closing") or body["run"] == approval["run"]
        need(ran, "not the run that took up the approval")
        if kind in ("withdrawal", "closing"): del self.approvals[body["experiment_digest"]]
        charge = self.waiting.pop(body["charge_seq"]) if kind in ("release", "loss") else {}
        if kind in ("charge", "recovery", "merge"):
            self.spend(body.get("spends", [body.get("event")]), body["totals"])
        self.shown.update(body.get("heads", {}).items())
        match kind:
            case "genesis":
                self.policy, orders, deltas = (p := body["policy"]), p["orders"], p["order_deltas"]
                need(len(orders) == len(deltas) and orders == sorted({*orders}), "odd orders")
                need(math.fsum(deltas) <= p["delta"] * (1 + 1e-9), "more than its delta")
                self.keys, self.me = [by["public_key"]], {"site": body["site"], "ledger": r["hash"]}
                self.population, self.totals = body["population"], 0 * cost(1, 1, tuple(orders))
            case "approval": self.approvals[body["experiment_digest"]] = {**body, "run": None}
            case "reservation":
                need(not approval["run"] and body["run"] not in self.runs, "taken up before")
                need(body["charges"] == approval["charges"], "other charges than approved")
                approval["run"] = body["run"]
                self.runs.add(body["run"])
            case "charge":
                attempt = (body["run"], body["round"], body["attempt"])
                need(attempt not in self.runs and approval["charges"] > 0, "once too often")
                need(all(body[k] == approval[k] for k in ("plan_digest", "event")), "not approved")
                need(r["at"] <= (approval["expires"] or r["at"]), "expired")
                need(self.epsilon() <= self.policy["epsilon"] * (1 + 1e-9), "past the limit")
                need(self.policy["allow_unprotected"] or not self.total[None, None], "unprotected")
                approval["charges"] -= 1
                self.runs.add(attempt)
                self.waiting[r["seq"]] = {**approval, **body, "head_before": r["previous"]}
            case "release":
                need(body["versions"].get("randomness") != "insecure-test", "noise for tests")
                self.stated[r["hash"]] = {**charge, **body, **by, "head_after": r["hash"]}
            case "closing":
                self.stated[r["hash"]] = {**body, **by, "seq": r["seq"], "head": r["hash"]}
            case "key_rotation":
                proven = canonical({**self.me, **body, "previous": r["previous"]}, "site", "proof")
                check("key rotation", body["public_key"], proven, body["proof"])
                self.keys.append(body["public_key"])
            case "recovery":
                held = [steps([a["event"]], a["charges"]) for a in self.approvals.values()]
                need(sum(held, Counter()) <= steps(body["spends"]), "less than the approvals held")
                self.recovered += steps(body["spends"])
                self.seen = max(self.seen, body["seen_seq"])
                self.approvals.clear()
            case "merge":
                self.paid[name := body["ledger"]] += steps(body["spends"])
                place = name, body["head_seq"], body["head"]
                self.merges.setdefault(place, self.paid[name].copy())
                self.shown.add((name, body["head"]))
            case "merged":
                self.shown.add((body["into"], (self.me["ledger"], r["seq"] - 1, r["previous"])))
            case "note": need(body["what"] != "declaration" or r["seq"] == 1, "a late declaration")
    def spend(self, events: list[dict], stated: list[float]) -> None:
        self.spent.append((len(self.hashes) - 1, kinds := steps(events)))
        self.total += kinds
        for of, number in kinds.items():
            if of[0]: self.totals = self.totals + number * cost(*of, tuple(self.policy["orders"]))
        noised = sum(number for number in self.total.values() if number < math.inf)
        slack = [max(1e-9 * abs(total), 2e-15 * noised) for total in self.totals]
        need(len(stated) == len(slack) and all(abs(self.totals - stated) <= slack), "other totals")
    def epsilon(self) -> float:  # of the filter: arXiv 2004.00010, Proposition 12
        each = zip(self.policy["orders"], self.policy["order_deltas"], self.totals, strict=True)
        return min(max(0.0, float(rho) + math.log(1 - 1 / a) - math.log(d * a) / (a - 1))
                   if rho else 0.0 for a, d, rho in each)
    def report(self, trust: list, papers: list) -> dict:
        lost, mark = Counter(), hashlib.sha256(bytes.fromhex("".join(self.keys[:1]))).digest()
        about = [paper for paper in papers if paper[0]["public_key"] in self.keys]
        for paper, form in [] if self.problems else about:
            try:
                at, head = ("charge_seq", "head_after") if form == "receipt" else ("seq", "head")
                stated, said = self.stated.get(paper[head]), {**paper, "signature": None}
                need(self.me.items() <= paper.items() and (stated or paper[at] <= self.seen), "")
                need(not stated or all(stated.get(k) == said[k] for k in said), "not as recorded")
                lost += steps([paper["event"]] if form == "receipt" and not stated else [])
            except Exception as problem:
                self.problems.append(f"{form}: {problem!r:.200}")
        self.problems += ["receipts hold more than recoveries spent"] * (not lost <= self.recovered)
        if trust and "SHA256:" + base64.b64encode(mark).decode().rstrip("=") not in trust:
            self.problems.append("the key of the genesis is not trusted")
        verdict = "contradicted" if self.problems else "verified" if trust else "consistent"
        return {"path": self.path, "site": self.me.get("site"), "problems": self.problems,
                "verdict": verdict, "totals": [float(total) for total in self.totals],
                "epsilon": self.epsilon() if self.keys and not self.total[None, None] else None,
                **{f"{kind}s": self.count_of[kind] for kind in ("charge", "release", "refusal")}}
def between(sound: list[Ledger]) -> Iterator[str]:  # what accuses none of them
    for whose, what in {pair for one in sound for pair in one.shown}:
        own = [o for o in sound if whose in o.me.values()]
        if own and not any(o.count_of[what] or what in o.merges or o.seen >= 0 for o in own):
            yield f"{whose} does not hold {what}: the past was rewritten, or this copy is older"
    for us, (name, seq, head), paid in ((o, *m) for o in sound for m in o.merges.items()):
        for o in (o for o in sound if o.me["ledger"] == name and o.count_of[head]):
            cost = sum((cost for at, cost in o.spent if at <= seq), Counter())
            lax = any(us.policy[x] > o.policy[x] for x in ("epsilon", "delta", "allow_unprotected"))
            lax |= us.count_of["declaration"] != o.count_of["declaration"]
            if lax or o.hashes[seq + 1:seq + 2] != [head] or not cost <= paid:
                us.problems.append(f"merged {name} for less than its cost, or into a laxer budget")
def verify(paths: list, trust: list = (), receipts: list = (), closings: list = ()) -> dict:
    ledgers, problems, papers, valid = [Ledger(str(path)) for path in paths], [], {}, []
    for path, form in [(p, "receipt") for p in receipts] + [(p, "closing") for p in closings]:
        try:
            new = {canonical(x): (x, form) for x in list.copy(json.loads(Path(path).read_bytes()))}
            need(all(fits(x, f"signed_{form}") for x, _ in new.values()), f"malformed {form}")
            papers |= new
        except Exception as problem:
            problems.append(f"{path}: {problem!r:.200}")
    for one, other in ((one, other) for one in ledgers for other in ledgers):
        same = one.me.get("site") == other.me.get("site") and one.population == other.population
        if same and any(a != b for a, b in zip(one.hashes, other.hashes, strict=False)):
            one.problems.append(f"a fork of, or beside, {other.path}")
    sound = [one for one in ledgers if not one.problems]
    named = {one.me[key] for one in sound for key in ("site", "ledger")}
    problems += between(sound)
    for paper, form in papers.values():
        try:
            check(form, paper["public_key"], canonical(paper, "signature"), paper["signature"])
            own = any(paper["public_key"] in one.keys for one in ledgers)
            need(own or not named & {paper["site"], paper["ledger"]}, "by none of these keys")
            valid.append((paper, form))
        except Exception as problem:
            problems.append(f"{form} of {paper['site']}: {problem!r:.200}")
    return {"ledgers": [one.report(trust, valid) for one in ledgers], "problems": problems}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Check ledgers, receipts and closings.")
    parser.add_argument("paths", nargs="+", metavar="LEDGER")
    for option, value in ("trust", "FINGERPRINT"), ("receipts", "FILE"), ("closings", "FILE"):
        parser.add_argument(f"--{option}", action="append", default=[], metavar=value)
    said = verify(**vars(parser.parse_args()))
    print(json.dumps(said, indent=2))
    parser.exit(bool(said["problems"]) or any(x["verdict"] != "verified" for x in said["ledgers"]))
