"""Adds up the test logs of all stages: count_results.py BROKEN_STAGES LOG... ; the last line is the total."""
import json
import os
import sys

broken = int(sys.argv[1])
passed = failed = skipped = 0
for path in sys.argv[2:]:
    if not os.path.exists(path):
        continue
    counts = {"OK": 0, "SKIP": 0}
    with open(path) as log:
        for line in log:
            result = json.loads(line)["result"]
            counts[result] = counts.get(result, 0) + 1
    n_failed = sum(n for result, n in counts.items() if result not in ("OK", "SKIP", "EXPECTEDFAIL"))
    stage = os.path.splitext(os.path.basename(path))[0]
    print(f"{stage}: {counts['OK']} passed, {n_failed} failed, {counts['SKIP']} skipped")
    passed += counts["OK"]
    skipped += counts["SKIP"]
    failed += n_failed
if broken:
    print(f"{broken} stages did not finish")
    failed = max(failed, broken)
print(f"{passed} passed, {failed} failed, {skipped} skipped")
sys.exit(1 if failed or passed == 0 else 0)
