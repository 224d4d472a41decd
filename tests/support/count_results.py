"""Adds up the test logs of all stages: count_results.py BUILDS STAGE=EXIT_CODE=LOG[,LOG]...

A stage that ended badly without a failed test counts as one failure. The last line is the total.
"""
import json
import os
import sys


def count_log(path):
    """Passed, failed and skipped tests of one log of the build tool; nothing when there is no log."""
    passed = failed = skipped = 0
    if os.path.exists(path):
        with open(path, encoding="utf-8") as log:
            for line in log:
                result = json.loads(line)["result"]
                passed += result in ("OK", "EXPECTEDFAIL")
                skipped += result == "SKIP"
                failed += result not in ("OK", "EXPECTEDFAIL", "SKIP")
    return passed, failed, skipped


def main():
    builds = sys.argv[1]
    total = [0, 0, 0]
    for argument in sys.argv[2:]:
        stage, code, logs = argument.split("=")
        failed_in_stage = 0
        for name in logs.split(","):
            counts = count_log(os.path.join(builds, stage, "meson-logs", name + ".json"))
            print("{}: {} passed, {} failed, {} skipped".format(name, *counts))
            total = [a + b for a, b in zip(total, counts)]
            failed_in_stage += counts[1]
        if code != "0" and failed_in_stage == 0:
            print(f"{stage}: did not finish, counted as 1 failed")
            total[1] += 1
    print("{} passed, {} failed, {} skipped".format(*total))
    return 1 if total[1] or not total[0] else 0


sys.exit(main())
