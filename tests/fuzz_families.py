"""Every family in every layout on random sizes, there and back and with faults, for as long as asked: `make families`.

A fault (experts missing, too many or doubled, a projection or another shape, dtype or name of a tensor, see
lazysd.testing.conformance.faults) has to be refused; the rest has to come back with the very bits, and experts alone,
without a config.json, give what their family gives or are refused. Prints what it has checked, or the smallest failing
case there is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from lazysd.layouts import registry
from lazysd.testing.conformance.layouts import FamilySuite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--examples", type=int, default=20, help="of each property, a family and round")
    parser.add_argument("--families", nargs="*", default=None)
    args = parser.parse_args()
    names = args.families or [name for name, family in registry.families().items() if family.experts]
    counts: Counter[str] = Counter()
    start = time.monotonic()
    while time.monotonic() - start < args.seconds:
        for name in names:
            if time.monotonic() - start >= args.seconds:
                break
            suite = FamilySuite()
            suite.family, suite.max_examples = name, args.examples
            suite.test_a_fault_is_refused()
            suite.test_there_and_back()
            suite.test_experts_alone_are_right_or_refused()
            counts["faults"] += 3 * args.examples
            counts["round trips"] += args.examples * len(suite.weights())
            counts["experts alone"] += args.examples
            counts["families"] += 1
    took = time.monotonic() - start
    shown = ", ".join(f"{count} {what}" for what, count in counts.items())
    sys.stdout.write(f"{took:.0f} s: {shown}; each exact or refused ({len(names)} families)\n")


if __name__ == "__main__":
    main()
