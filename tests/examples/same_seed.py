"""Two programs race; a seed decides, and decides the same way each time.

Run:    python same_seed.py DIR
Prints: the same order twice, and ... orders among 20 seeds
"""

import sys

from vmsim import Machine
from vmsim.schedule.seeded import SeededSchedule


def order(seed):
    schedule = SeededSchedule(seed)
    arrived = []
    with Machine(sys.argv[1], memory="8M", schedule=schedule) as vm:

        def program(name):
            return lambda fs: [fs.stat("/") and arrived.append(name) for _ in range(3)]

        tasks = [vm.spawn(name, program(name), pid) for pid, name in enumerate("ab", 1)]
        for task in tasks:
            schedule.join(task)
    return "".join(arrived)


assert order(7) == order(7)
orders = {order(seed) for seed in range(20)}
assert len(orders) > 1
print(f"the same order twice, and {len(orders)} orders among 20 seeds")
