"""The worker pool: never hangs, never loses a row, from any thread, in any process; and the check of golds."""

import ast
import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from reward_funcs import check_golds, configure_pool, final_answer, math_accuracy_reward, verifiable_reward
from reward_funcs import pool as pool_module
from reward_funcs.pool import DIED, TIMED_OUT, WorkerPool, default_num_workers, shared_pool


ROOT = Path(__file__).parents[1]
HANGING = ("equal", r"\sqrt{2}", "9^{9^{9^{9}}}")
RIGHT = ("equal", r"\sqrt{8}", r"2\sqrt{2}")
WRONG = ("equal", r"\sqrt{8}", r"3\sqrt{2}")


@pytest.fixture
def pool():
    pool = WorkerPool(num_workers=2, deadline=2.0)
    yield pool
    pool.close()


@pytest.fixture
def short_deadline():
    configure_pool(num_workers=2, deadline=2.0)
    yield
    configure_pool()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_come_in_the_order_of_the_tasks(pool):
    tasks = [RIGHT, WRONG, WRONG, RIGHT] * 25
    assert pool.run(tasks).results == [True, False, False, True] * 25
    assert pool.run([]).results == []


def test_a_hanging_task_is_given_up_and_none_is_lost(pool):
    tasks = [RIGHT if i % 2 else WRONG for i in range(200)]
    tasks[0] = tasks[199] = HANGING
    outcome = pool.run(tasks)
    assert outcome.failures == {0: TIMED_OUT, 199: TIMED_OUT}
    assert outcome.results == [None if i in outcome.failures else bool(i % 2) for i in range(200)]
    assert pool.run([RIGHT]).results == [True]


def test_no_more_workers_than_allowed_and_dead_ones_replaced(pool):
    pool.run([RIGHT] * 100)
    workers = [worker.process.pid for worker in pool._workers]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)  # while idle: no task is to blame
    time.sleep(0.2)
    outcome = pool.run([RIGHT] * 100)
    assert outcome.results == [True] * 100 and not outcome.failures
    assert not is_running(workers[0]) and len(pool._workers) <= 2


def test_a_worker_that_dies_costs_one_row():
    pool = WorkerPool(num_workers=1, deadline=30.0)
    try:
        pool.run([RIGHT])
        killer = threading.Timer(2.0, os.kill, (pool._workers[0].process.pid, signal.SIGKILL))
        killer.start()
        outcome = pool.run([RIGHT, HANGING, RIGHT])
        assert outcome.results == [True, None, True] and outcome.failures == {1: DIED}
    finally:
        pool.close()


def test_a_memory_bomb_is_refused_and_leaves_the_trainer_alone(pool):
    assert pool.run([("equal", r"\sqrt{2}", r"2^{2^{40}}+\sqrt{2}"), RIGHT]).results[1] is True


def test_works_from_several_threads_at_once(pool):
    results = [None] * 4

    def work(index):
        results[index] = pool.run([RIGHT, WRONG] * 20).results

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == [[True, False] * 20] * 4


def test_an_interrupted_call_leaves_no_replies_behind(pool):
    pool.run([RIGHT])
    main = threading.get_ident()
    timer = threading.Timer(0.4, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if pytest runs in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.run([HANGING, HANGING, WRONG, WRONG])
    finally:
        signal.signal(signal.SIGINT, before)
    assert pool.run([RIGHT] * 3).results == [True] * 3


def test_a_forked_process_makes_its_own_workers():
    assert shared_pool().run([RIGHT]).results == [True]
    parents = {worker.process.pid for worker in shared_pool()._workers}
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside the threads of other tests
        child = os.fork()
    if child == 0:
        try:
            result = shared_pool().run([RIGHT, WRONG]).results == [True, False]
            own = parents.isdisjoint(worker.process.pid for worker in shared_pool()._workers)
            shared_pool().close()
            os.write(write, b"1" if result and own else b"0")
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0 and os.read(read, 1) == b"1"
    os.close(read), os.close(write)
    assert shared_pool().run([RIGHT]).results == [True] and all(is_running(pid) for pid in parents)


def test_workers_hold_no_torch_and_end_with_the_process_that_started_them():
    code = """
import os, sys
from reward_funcs.pool import shared_pool
assert shared_pool().run([("equal", "sqrt(2)", "2^{1/2}")]).results
pid = shared_pool()._workers[0].process.pid
libraries = open(f"/proc/{pid}/maps").read() if os.path.exists("/proc") else ""
print([pid, "torch" in libraries, "transformers" in libraries, "torch" in sys.modules], flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
"""
    for end in ("normally", "killed"):
        run = subprocess.run([sys.executable, "-c", code, end], cwd=ROOT, capture_output=True, text=True, timeout=60)
        pid, *heavy = ast.literal_eval(run.stdout)
        assert heavy == [False, False, False], run.stderr
        deadline = time.monotonic() + 20
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(pid)


@pytest.mark.slow
def test_a_hanging_worker_without_a_parent_ends_by_itself():
    worker = subprocess.Popen(
        [sys.executable, "-m", "reward_funcs.worker", "0.1"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdout.readline() == b'"ready"\n'
    worker.stdin.write(json.dumps([HANGING]).encode() + b"\n")
    worker.stdin.close()
    assert worker.wait(timeout=60) == -signal.SIGALRM and worker.stdout.read() == b""
    worker.stdout.close()


def test_workers_start_from_a_script_that_is_still_being_imported(tmp_path):
    """Scripts without `if __name__ == "__main__"` must not start themselves again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from reward_funcs import verifiable_reward\nprint('started')\n"
        "print(verifiable_reward([r'\\boxed{\\sqrt8}'], [r'2\\sqrt2']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    assert run.stdout == "started\n[1.0]\n", run.stderr


def test_workers_that_cannot_start_are_an_error_and_not_a_reward(monkeypatch):
    pool = WorkerPool(num_workers=1)
    monkeypatch.setattr(pool_module.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="cannot start"):
        pool.run([RIGHT])
    pool.close()


@pytest.mark.parametrize(("settings", "name"), [({"num_workers": 0}, "num_workers"), ({"deadline": 0.0}, "deadline")])
def test_settings_that_make_no_pool_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        configure_pool(**settings)


def test_the_cores_are_shared_by_the_processes_of_a_node(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    said_by = ["LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"]  # torchrun, DeepSpeed, Open MPI
    for name in said_by:
        monkeypatch.delenv(name, raising=False)
    assert default_num_workers() == 8
    for name in said_by:
        for processes, workers in [("1", 8), ("4", 4), ("16", 1), ("64", 1)]:
            monkeypatch.setenv(name, processes)
            assert default_num_workers() == workers
        monkeypatch.delenv(name)


def test_a_late_answer_scores_zero_and_every_row_of_it_is_counted(short_deadline):
    metrics = {}
    completions = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{2\sqrt2}", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{3\sqrt2}"]
    scores = verifiable_reward(completions, [r"\sqrt8"] * 4, log_metric=metrics.__setitem__)
    assert scores == [0.0, 1.0, 0.0, 0.0]
    assert (metrics["reward_checks/timed_out"], metrics["reward_checks/worker_died"]) == (2.0, 0.0)


@pytest.mark.slow
def test_a_long_run_with_one_hanging_answer_in_a_hundred(short_deadline):
    """300 different answers; `benchmarks/reward_throughput.py` does 10,000."""
    golds = [rf"\sqrt{{{n}}}" for n in range(2, 302)]
    answers = [
        rf"\boxed{{{n}^{{1/2}}}}" if n % 3 else rf"\boxed{{\frac{{\sqrt{{{4 * n}}}}}{{2}}}}" for n in range(2, 302)
    ]
    expected = [1.0] * 300
    for row in range(50, 300, 100):
        answers[row], expected[row] = rf"\boxed{{9^{{9^{{9^{{{row}}}}}}}}}", 0.0
    metrics = {}
    assert verifiable_reward(answers, golds, log_metric=metrics.__setitem__) == expected
    assert metrics["reward_checks/timed_out"] == 3.0


TWO_MEGABYTES = 2 * 2**20
PATHOLOGICAL = {
    "empty": "",
    "long text": "lorem ipsum " * (TWO_MEGABYTES // 12),
    "long box": r"\boxed{" + "7" * TWO_MEGABYTES + "}",
    "long unclosed box": r"\boxed{" + "{" * TWO_MEGABYTES,
    "many unclosed boxes": r"\boxed{" * (TWO_MEGABYTES // 7),
    "many boxes": r"\boxed{5}" * (TWO_MEGABYTES // 9),
    "nested braces": r"\boxed{" + "{" * 1000 + "5" + "}" * 1000 + "}",
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 1000 + "5" + "}" * 1000 + "}",
    "nested parentheses": r"\boxed{" + "(" * 900 + "5" + ")" * 900 + "}",
    "code": "```python\ndef f(x):\n    return {k: [x] for k in range(10**9)}\n```",
    "code in a box": "\\boxed{def f(x):\n    return [x**2 for x in range(10**9)]}",
    "import in a box": r"\boxed{__import__('os').system('sleep 100')}",
    "huge exponent": r"\boxed{1e999999999}",
    "backslashes": r"\boxed{" + "\\" * 1500 + "}",
    "dollars": r"\boxed{" + "$" * 1500 + "}",
    "commas": r"\boxed{" + "," * 1500 + "}",
    "blanks": r"\boxed{5" + " " * 1500 + "x}",
    "many words": r"\boxed{" + " and " * 300 + "}",
    "many signs": r"\boxed{" + r"1\pm 2," * 200 + "}",
    "lone surrogates": "\\boxed{" + "\ud800" * 500 + "}",
    "control characters": "\\boxed{\x00\x01\x1b}",
}


@pytest.mark.parametrize("completion", PATHOLOGICAL.values(), ids=PATHOLOGICAL)
def test_pathological_completions_score_zero_quickly(completion):
    golds = ["7", r"\sqrt{2}", r"(-\infty,2)\cup(3,\infty)", r"\text{A, B}", "C", "True"]
    shared_pool().run([RIGHT])  # started
    start = time.monotonic()
    assert verifiable_reward([completion] * len(golds), golds) == [0.0] * len(golds)
    assert time.monotonic() - start < 5.0


def test_a_long_text_with_a_good_box_is_read():
    assert math_accuracy_reward(["x " * 2**20 + r"\boxed{7}", r"\boxed{7} " + "x " * 2**20], ["7", "7"]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("18", "18"),
        (" 18\n", "18"),
        (r"First $\boxed{3}$, then $a+b=\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"So it is $\boxed 2$.", "2"),
        ("He has 2 + 3 = 5.\n#### 1,450", "1,450"),
        (r"There are $\boxed{}$ primes.", ""),
        (None, None),
        ("  ", None),
        (float("nan"), None),
        (True, "True"),
        ([1, 2], "[1, 2]"),
        (7, "7"),
    ],
)
def test_golds_are_reduced_to_the_final_answer(solution, answer):
    assert final_answer(solution) == answer


def test_golds_that_cannot_be_parsed_are_listed(caplog):
    golds = [
        "5",
        r"\frac{1}{",
        r"\text{Evelyn}",
        r"x^2+\sqrt{3}",
        None,
        "A",
        r"It is clear. " * 300,
        r"\boxed{}",
        r"(1, \sqrt{2})",
    ]
    rows = [{"solution": gold} for gold in golds]
    with caplog.at_level(logging.WARNING, logger="reward_funcs"):
        report = check_golds(rows, max_unparsable_share=0.5)
    assert list(report.unparsable) == [1, 4, 6, 7] and report.total == 9 and report.share == 4 / 9
    assert "4 of 9 golds (44.44%)" in caplog.text and "row 1" in caplog.text and "row 4" in caplog.text
    with pytest.raises(ValueError, match=r"(?s)row 1.*max_unparsable_share"):
        check_golds(rows, max_unparsable_share=0.4)


def test_good_golds_are_silent(caplog):
    with caplog.at_level(logging.WARNING, logger="reward_funcs"):
        assert check_golds([{"solution": r"\frac12"}, {"solution": "B"}]).share == 0.0
        assert check_golds([]).share == 0.0
    assert not caplog.records


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_unparsable_share": 1.5}, "max_unparsable_share"), ({"column": "gold"}, "no column 'gold'")],
)
def test_check_golds_refuses_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        check_golds([{"solution": "5"}], **settings)


def test_check_golds_reads_a_dataset():
    datasets = pytest.importorskip("datasets")
    report = check_golds(
        datasets.Dataset.from_dict({"solution": ["5", r"\sqrt{2}", r"\frac{"]}), max_unparsable_share=1.0
    )
    assert list(report.unparsable) == [2]


# ---------------------------------------------------------------------- where workers import from


def reward_in_a_process(code: str, cwd: Path, **environment: str) -> str:
    """Standard output of a script that lies elsewhere than in the working directory and needs a worker."""
    (cwd.parent / "script.py").write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    command = [sys.executable, "-P", str(cwd.parent / "script.py")]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


NEEDS_A_WORKER = (
    r"from reward_funcs import verifiable_reward as reward; print(reward([r'\boxed{\sqrt8}'], [r'2\sqrt2']))"
)
TRAPS = ("random", "json", "sympy", "numbers", "math_verify", "reward_funcs")


def test_nothing_is_imported_from_the_working_directory(tmp_path):
    cwd = tmp_path / "work"
    cwd.mkdir()
    for name in TRAPS:
        (cwd / f"{name}.py").write_text("raise RuntimeError('imported from the working directory')\n")
    code = f"import sys; sys.path.append({str(ROOT)!r}); sys.path.append({str(cwd)!r}); {NEEDS_A_WORKER}"
    assert reward_in_a_process(code, cwd) == "[1.0]"


def test_the_working_directory_may_hold_the_package_itself(tmp_path):
    """As in a checkout of the repository that is installed in place, with a script called `random.py` in it."""
    cwd = tmp_path / "checkout"
    shutil.copytree(ROOT / "reward_funcs", cwd / "reward_funcs", ignore=shutil.ignore_patterns("__pycache__"))
    (cwd / "random.py").write_text("raise RuntimeError('imported from the working directory')\n")
    code = f"import sys; sys.path.append({str(cwd)!r}); {NEEDS_A_WORKER}; import reward_funcs; print(reward_funcs.__file__)"
    assert reward_in_a_process(code, cwd).split() == ["[1.0]", str(cwd / "reward_funcs" / "__init__.py")]


def test_workers_find_libraries_on_pythonpath(tmp_path):
    """An interpreter without site-packages, which finds everything through PYTHONPATH."""
    cwd, libraries = tmp_path / "work", tmp_path / "libraries"
    cwd.mkdir(), libraries.mkdir()
    for name in ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4"):
        (libraries / name).symlink_to(Path(importlib.util.find_spec(name).origin).parent)
    (tmp_path / "script.py").write_text(NEEDS_A_WORKER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(libraries)])}
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if subprocess.run([python, "-c", "import math_verify"], env={}, capture_output=True).returncode == 0:
        pytest.skip("the interpreter has math_verify itself")
    command = [python, tmp_path / "script.py"]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[1.0]\n", done.stderr


def test_workers_use_the_package_of_the_process_that_starts_them(pool, monkeypatch, tmp_path):
    """Not one of the same name that is installed, or that PYTHONPATH has first."""
    (tmp_path / "reward_funcs").mkdir()
    (tmp_path / "reward_funcs" / "__init__.py").write_text("raise RuntimeError('the other package')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert pool.run([RIGHT, WRONG]).results == [True, False]


def test_a_schedulers_signal_leaves_workers_to_their_parent(pool):
    """It goes to every process of a job, whose running step is then finished and saved."""
    assert pool.run([RIGHT]).results == [True]
    processes = [worker.process for worker in pool._workers]
    for process in processes:
        process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert pool.run([RIGHT, WRONG]).results == [True, False]
    assert processes and all(process.poll() is None for process in processes)
