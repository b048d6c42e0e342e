"""Processes that are killed, and processes that race."""

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from federation.canonical import digest_bytes
from federation.ledger.filter import PoissonGaussian
from federation.ledger.ledger import Ledger

LOOP = """
import sys
from pathlib import Path
from federation.canonical import digest
from federation.errors import Refused
from federation.ledger.filter import PoissonGaussian
from federation.ledger.keys import SiteKey
from federation.ledger.ledger import Ledger, RoundKey
folder, run, start, count = Path(sys.argv[1]), *sys.argv[2].split(":"), int(sys.argv[3])
ledger = Ledger.open(folder / "ledger.jsonl", SiteKey.load(folder))
event = PoissonGaussian(*map(float, sys.argv[4:6]), int(sys.argv[6]))
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(start), int(start) + count):
    try:
        charge = ledger.charge(RoundKey(run, n, 0), request_digest=digest(n),
            experiment_digest=digest("experiment"), plan_digest=digest("plan"), event=event)
    except Refused as refusal:
        print(refusal.code, flush=True)
        continue
    print(charge.seq, flush=True)
    receipt = ledger.release(charge, f"{run} {n}".encode() * 2000)
    print("released", receipt.update_digest, flush=True)
"""


def start(world, run, count, event):
    numbers = [str(event.sampling_rate), str(event.noise_multiplier), str(event.steps)]
    command = [sys.executable, "-c", LOOP, str(world.folder), run, str(count), *numbers]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def go(process):
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


def test_killed_at_any_time_every_payload_has_exactly_one_charge(world):
    small = PoissonGaussian(0.01, 5.0, 1)
    world.approve(charges=300_000, event=small)
    rng, acknowledged, released = random.Random(7), 0, set()
    for trial in range(20):
        process = start(world, f"run:{trial * 10_000}", 10_000, small)
        go(process)
        lines = [process.stdout.readline() for _ in range(rng.randrange(4))]
        time.sleep(rng.uniform(0.0, 0.03))
        process.kill()
        lines += process.communicate()[0].splitlines()
        acknowledged += sum(line.strip().isdigit() for line in lines)
        released |= {line.split()[1] for line in lines if line.startswith("released ")}
        check_after_kill(world, num_charges=acknowledged, released=released)
    world.ledger = world.reopened()
    charged = {r.seq for r in world.ledger.records if r.kind == "charge"}
    kept = {r.body["charge_seq"] for r in world.ledger.records if r.kind == "release"}
    assert len(charged - kept) > 3, "no kill fell between charge and release"
    assert len(kept) > 10


def check_after_kill(world, *, num_charges, released):
    """What was acknowledged is there, and no payload is without its one charge."""
    ledger = Ledger.open(world.ledger.path, world.key)
    charged = {r.seq for r in ledger.records if r.kind == "charge"}
    kept = {r.body["charge_seq"]: r.body for r in ledger.records if r.kind == "release"}
    payloads = {int(p.name[:8]): p for p in (world.folder / "outbox").glob("[0-9]*.update")}
    assert len(charged) >= num_charges
    assert len(payloads) == len(list((world.folder / "outbox").glob("[0-9]*.update")))
    assert set(kept) <= set(payloads) <= charged
    assert released <= {body["update_digest"] for body in kept.values()}
    for seq, body in kept.items():
        assert digest_bytes(payloads[seq].read_bytes()) == body["update_digest"]
    ledger.close()


def test_two_processes_never_pass_the_budget_together(world):
    world.approve(charges=12)
    processes = [start(world, f"run:{n * 100}", 10, world.event) for n in range(2)]
    for process in processes:
        go(process)
    said = [line for p in processes for line in p.communicate()[0].splitlines()]
    ledger = world.reopened()
    assert said.count("approval_used_up") == 8
    assert sum(record.kind == "charge" for record in ledger.records) == 12
    assert ledger.spent_epsilon <= 8.0
    assert world.ledger.head == ledger.head


def test_threads_take_turns(world):
    world.approve()
    with ThreadPoolExecutor(4) as pool:
        charges = list(pool.map(world.charge, range(12)))
    assert len({charge.seq for charge in charges}) == 12
    world.reopened()
