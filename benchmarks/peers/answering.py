"""A peer's end of the line: each line of input is a piece of work, its answer a line of another file."""

import gc
import json
import os
import sys
import time


def serve(works):
    """Do the works asked for, by name, until the input ends.

    An answer has the wall and CPU time of the work (s, CPU of all threads) and, where it returns one, its
    dictionary.
    """
    answers = os.fdopen(int(os.environ["PASAR_ANSWERS"]), "w")
    for line in sys.stdin:
        arguments = json.loads(line)
        work = works[arguments.pop("work")]
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        said = work(**arguments)
        times = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        answers.write(json.dumps({**times, **(said if isinstance(said, dict) else {})}) + "\n")
        answers.flush()
