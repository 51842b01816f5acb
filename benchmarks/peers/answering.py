"""A peer's end of the line: each line of standard input is a piece of work, each answer a line of output."""

import gc
import json
import os
import sys
import time


def serve(works):
    """Do the works asked for, by name, until the input ends.

    An answer has the wall and CPU time of the work (s, CPU of all threads) and, where it returns one, its
    dictionary. What the works print goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        arguments = json.loads(line)
        work = works[arguments.pop("work")]
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        said = work(**arguments)
        times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        answers.write(json.dumps({**times, **(said if isinstance(said, dict) else {})}) + "\n")
        answers.flush()
