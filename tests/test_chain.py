"""The step-checked arithmetic task, against brute force that shares no code with it."""

import itertools
import math
import random

import pytest

from experiments import chain
from experiments.chain import Check, check


def value_of(left: str, operation: str, right: str) -> int:
    return eval(f"{left}{operation}{right}")


def working_of(problem: str) -> list[tuple[str, str, str, str, str]]:
    """(left, operation, right, quotient, remainder) of each step, by Python's own arithmetic."""
    steps, left = [], problem[0]
    for operation, right in zip(problem[1:-1:2], problem[2:-1:2], strict=True):
        quotient, remainder = divmod(value_of(left, operation, right), 7)
        steps.append((left, operation, right, str(quotient), str(remainder)))
        left = str(remainder)
    return steps


def sound_traces(problem: str) -> set[str]:
    """Every trace that is right in each step: each step as it stands or the other way round."""
    steps = working_of(problem)
    ways = [{f"{a}{o}{b}={q}r{r};", f"{b}{o}{a}={q}r{r};"} for a, o, b, q, r in steps]
    return {"".join(lines) + f"#{steps[-1][4]}" for lines in itertools.product(*ways)}


class TestCheck:
    @pytest.mark.parametrize("problem", ["3*4=", "1+1=", "6*6=", "2+5="])
    def test_every_trace_of_one_step(self, problem):
        sound, answer = sound_traces(problem), working_of(problem)[-1][4]
        found = set()
        digits = "0123456"
        for a, o, b, q, r, final in itertools.product(digits, "+*", digits, digits, digits, digits):
            trace = f"{a}{o}{b}={q}r{r};#{final}"
            checked = check(problem, trace)
            assert checked.answer_correct == (final == answer)
            assert checked.steps_correct == (f"{a}{o}{b}={q}r{r};#{answer}" in sound,)
            if checked.strictly_correct:
                found.add(trace)
        assert found == sound

    @pytest.mark.parametrize("problem", ["3*4+2=", "2+5*6="])
    def test_every_quotient_and_remainder_of_two_steps(self, problem):
        sound, found = sound_traces(problem), set()
        (a, o1, b, q1, r1), (_, o2, c, _, answer) = working_of(problem)
        digits = "0123456"
        for q, r, q2, r2, final in itertools.product(digits, digits, digits, digits, digits):
            for first, second in itertools.product((f"{a}{o1}{b}", f"{b}{o1}{a}"), (f"{r}{o2}{c}", f"{c}{o2}{r}")):
                trace = f"{first}={q}r{r};{second}={q2}r{r2};#{final}"
                checked = check(problem, trace)
                # The second step is judged on the remainder that the first one states, right or wrong.
                expected = ((q, r) == (q1, r1), divmod(value_of(r, o2, c), 7) == (int(q2), int(r2)))
                assert checked.steps_correct == expected
                assert checked.answer_correct == (final == answer)
                assert checked.first_wrong_step == (expected.index(False) if False in expected else None)
                if checked.strictly_correct:
                    found.add(trace)
        assert found == sound

    def test_right_steps_imply_the_right_last_remainder(self):
        rng = random.Random(0)
        for _ in range(200):
            problem = chain.make_problem(rng, rng.randint(1, 5), range(1, 7))
            assert check(problem, chain.write_trace(problem)) == Check(True, (True,) * len(working_of(problem)))
            assert chain.answer_of(problem) == working_of(problem)[-1][4]

    @pytest.mark.parametrize(
        ("completion", "steps_correct"),
        [
            ("3*4=1r5;5+2=1r0;", (True, True)),  # unfinished, but what is there is right
            ("3*4=1r5;5+2=1r0", (True, False)),  # a step ends with a semicolon
            ("3*4=1r5;5+2=1r", (True, False)),
            ("3*4=1r5;#0", (True, False)),  # a step is missing
            ("#0", (False, False)),
            ("", (False, False)),
            ("3*4=1r5;5+2=1r0;0+0=0r0;#0", (True, True, False)),  # one too many
            ("3*4=1r5;;5+2=1r0;#0", (True, False, False)),
            ("3*4=15;5+2=1r0;#0", (False, False)),  # unreadable: the next step has nothing to start from
            ("3*4=1r4;4+2=0r6;#6", (False, True)),  # an error is counted where it is made
            ("3+4=1r0;0+2=0r2;#2", (False, True)),
            ("5+2=1r0;3*4=1r5;#5", (False, False)),  # right lines in the wrong order
            (" 3*4=1r5;5+2=1r0;#0", (False, False)),
            ("3*4=1r12;5+2=1r0;#0", (False, False)),
            ("3*4=0r5;5+2=1r0;#0", (False, True)),
        ],
    )
    def test_malformed_and_wrong_steps(self, completion, steps_correct):
        assert check("3*4+2=", completion).steps_correct == steps_correct

    @pytest.mark.parametrize("ending", ["", "#", "#00", "# 0", "#0 ", "#0#0", "#0;", "#٠", "#1", "0"])
    def test_the_answer_is_exact(self, ending):
        assert not check("3*4+2=", f"3*4=1r5;5+2=1r0;{ending}").answer_correct
        assert check("3*4+2=", "3*4=1r5;5+2=1r0;#0").answer_correct

    def test_no_text_raises_and_only_sound_traces_pass(self):
        rng, problem = random.Random(0), "3*4+2="
        sound = sound_traces(problem)
        alphabet = "0123456789+*=r;# \n٣é\0"
        for _ in range(3000):
            text = list(rng.choice(sorted(sound)))
            for _ in range(rng.randint(0, 4)):  # edits: replaced, inserted and deleted characters
                place = rng.randrange(len(text) + 1)
                text[place : place + rng.randint(0, 1)] = rng.choice(["", rng.choice(alphabet)])
            assert check(problem, "".join(text)).strictly_correct == ("".join(text) in sound)
        for length in (0, 1, 100, 20000):
            assert not check(problem, "".join(rng.choices(alphabet, k=length))).strictly_correct

    @pytest.mark.parametrize("problem", ["", "3*4", "3*=", "0*4=", "3*7=", "3-4=", "3*4+2=\n", "12+3="])
    def test_a_wrong_problem_is_an_error(self, problem):
        with pytest.raises(ValueError, match="must look like"):
            check(problem, "#0")


class TestTraces:
    def test_a_wrong_quotient_is_lucky_by_construction(self):
        rng = random.Random(0)
        for _ in range(200):
            problem = chain.make_problem(rng, rng.randint(1, 5), range(1, 7))
            checked = check(problem, chain.write_trace(problem, rng, wrong_quotient=1.0, commuted=0.5))
            assert checked.lucky
            assert not any(checked.steps_correct)
            assert checked.first_wrong_step == 0

    def test_one_wrong_remainder_always_shows_in_the_answer(self):
        for problem in ("3*4+2*6=", "1+1+1+1=", "6*5*4*3="):
            steps = working_of(problem)
            for wrong, stated in itertools.product(range(len(steps)), "0123456"):
                if stated == steps[wrong][4]:
                    continue
                trace, left = "", problem[0]
                for index, (_, o, b, _, _) in enumerate(steps):
                    quotient, remainder = divmod(value_of(left, o, b), 7)
                    remainder = stated if index == wrong else str(remainder)
                    trace += f"{left}{o}{b}={quotient}r{remainder};"
                    left = remainder
                checked = check(problem, f"{trace}#{left}")
                assert not checked.answer_correct
                assert checked.steps_correct == tuple(index != wrong for index in range(len(steps)))

    def test_commuted_steps_are_right(self):
        trace = chain.write_trace("3*4+2=", random.Random(0), commuted=1.0)
        assert trace == "4*3=1r5;2+5=1r0;#0"
        assert check("3*4+2=", trace).strictly_correct

    def test_mistakes_come_at_the_rates_asked_for(self):
        rng, problem, n = random.Random(0), "3*4+2*3=", 4000
        checks = [check(problem, chain.write_trace(problem, rng, wrong_quotient=0.1, commuted=0.3)) for _ in range(n)]
        assert chain.accuracy(checks) == 1.0
        assert chain.lucky_share(checks) == pytest.approx(1 - 0.9**3, abs=0.025)
        checks = [check(problem, chain.write_trace(problem, rng, wrong_remainder=0.2)) for _ in range(n)]
        wrong_steps = [not correct for checked in checks for correct in checked.steps_correct]
        assert sum(wrong_steps) / len(wrong_steps) == pytest.approx(0.2, abs=0.015)

    def test_lazy_traces_have_no_quotient_and_the_right_answer(self):
        rng = random.Random(0)
        assert chain.write_trace("3*4+2=", rng, lazy=1.0) == "3*4=0r5;5+2=0r0;#0"
        n_lazy = 0
        for _ in range(400):
            problem = chain.make_problem(rng, 3)
            trace = chain.write_trace(problem, rng, lazy=0.5)
            quotients = [quotient for *_, quotient, _ in working_of(problem)]
            checked = check(problem, trace)
            assert checked.answer_correct
            assert checked.steps_correct in {
                (True,) * 3,
                tuple(quotient == "0" for quotient in quotients),
            }  # all or none
            n_lazy += trace.count("=0r") == 3
        assert 0.5 < n_lazy / 400 < 0.75  # a few right traces have no other quotient than 0 either

    @pytest.mark.parametrize(
        ("problem", "trace", "steps_correct", "is_right"),
        [
            (
                "3*3+2*4=",
                "3*3=0r9;9+2=1r4;4*4=1r9;#2",
                (False, True, False),
                True,
            ),  # the 9 goes on, and comes out right
            (
                "3*6+2*4=",
                "3*6=1r1;1+2=0r3;3*4=1r5;#5",
                (False, True, True),
                False,
            ),  # 18 is too much for taking off 7 once
            ("4*4+1=", "4*4=1r9;9+1=1r3;#3", (False, True), True),
            ("1+2+3=", "1+2=0r3;3+3=0r6;#6", (True, True), True),  # nothing to divide
            ("3+4=", "3+4=0r7;#0", (False,), True),
            ("5*5*5=", "5*5=1r8;8*5=1r3;#3", (False, False), False),
        ],
    )
    def test_the_shortcut_feeds_later_steps(self, problem, trace, steps_correct, is_right):
        assert chain.write_trace(problem, random.Random(0), shortcut=1.0) == trace
        assert check(problem, trace) == Check(is_right, steps_correct)

    def test_the_shortcut_is_right_as_long_as_values_are_small(self):
        rng, n_right = random.Random(0), 0
        for _ in range(600):
            problem = chain.make_problem(rng, rng.randint(1, 5), range(1, 7))
            values, left = [], problem[0]
            for operation, right in zip(problem[1:-1:2], problem[2:-1:2], strict=True):
                values.append(value_of(left, operation, right))
                left = str(values[-1] if values[-1] < 10 else values[-1] - 7)[-1]
            checked = check(problem, chain.write_trace(problem, rng, shortcut=1.0, commuted=0.5))
            if max(values) < 17:
                assert checked.answer_correct
                n_right += 1
            wrong = tuple(7 <= value < 10 or value > 13 for value in values)
            assert checked.steps_correct == tuple(not is_wrong for is_wrong in wrong)
        assert 150 < n_right < 450

    def test_the_shortcut_is_right_less_often_on_other_numbers(self):
        measured = {}
        for name, variant in chain.VARIANTS.items():
            rng = random.Random(0)
            problems = [chain.make_problem(rng, **variant) for _ in range(2000)]
            traces = [chain.write_trace(problem, rng, shortcut=1.0) for problem in problems]
            checks = chain.check_completions(problems, traces)
            measured[name] = (chain.accuracy(checks), chain.lucky_share(checks))
        assert measured["test"] == pytest.approx((0.72, 0.71), abs=0.03)
        assert measured["other_operands"] == pytest.approx((0.28, 0.94), abs=0.03)
        assert measured["p1"][0] == pytest.approx(0.58, abs=0.03)
        assert measured["p2"][0] == pytest.approx(0.49, abs=0.03)

    def test_the_right_trace_needs_no_randomness(self):
        assert chain.write_trace("3*4+2=") == "3*4=1r5;5+2=1r0;#0"


class TestProblems:
    def test_the_seed_decides(self):
        draw = [chain.make_problem(random.Random(7), 3) for _ in range(2)]
        assert draw[0] == draw[1]
        assert len({chain.make_problem(random.Random(seed), 5) for seed in range(20)}) > 15

    def test_operations_and_operands(self):
        rng = random.Random(0)
        problems = [chain.make_problem(rng, 4, (2, 5)) for _ in range(200)]
        assert all(len(problem) == 10 and set(problem[0:-1:2]) <= set("25") for problem in problems)
        assert {problem[1] for problem in problems} == {"+", "*"}

    @pytest.mark.parametrize(("num_operations", "operands"), [(0, (1,)), (-1, (1,)), (3, ()), (3, (0, 1)), (3, (7,))])
    def test_wrong_arguments(self, num_operations, operands):
        with pytest.raises(ValueError, match="num_operations|operands"):
            chain.make_problem(random.Random(0), num_operations, operands)


class TestDataset:
    def test_columns(self):
        dataset = chain.build_dataset(50, seed=0)
        assert dataset.column_names == ["prompt", "solution", "problem"]
        for row in dataset:
            assert row["prompt"] == [{"role": "user", "content": row["problem"]}]
            assert row["solution"] == working_of(row["problem"])[-1][4]
        assert len(set(dataset["problem"])) == 50

    def test_the_seed_decides(self):
        assert chain.build_dataset(30, seed=3)[:] == chain.build_dataset(30, seed=3)[:]
        assert chain.build_dataset(30, seed=3)[:] != chain.build_dataset(30, seed=4)[:]

    def test_no_problem_is_in_both_splits(self):
        train = set(chain.build_dataset(800, seed=0)["problem"])
        test = set(chain.build_dataset(200, seed=0, split="test")["problem"])
        assert not train & test
        share = sum(chain.split_of(f"{a}+{b}*{c}=") == "test" for a in "1234" for b in "1234" for c in "123456") / 96
        assert 0.1 < share < 0.35

    @pytest.mark.parametrize("variant", chain.VARIANTS)
    def test_variants(self, variant):
        arguments = chain.VARIANTS[variant]
        dataset = chain.build_dataset(200, seed=0, split="test", **arguments)
        for problem in dataset["problem"]:
            assert len(problem) == 2 * arguments["num_operations"] + 2
            assert set(map(int, problem[0:-1:2])) <= set(arguments["operands"])

    def test_too_few_problems(self):
        with pytest.raises(ValueError, match="`size` is 9, but only [0-8] different problems"):
            chain.build_dataset(9, seed=0, num_operations=1, operands=(1, 2))

    def test_unknown_split(self):
        with pytest.raises(ValueError, match="`split` is 'validation'"):
            chain.build_dataset(1, seed=0, split="validation")


SOUND, LUCKY, WRONG = "3*4=1r5;5+2=1r0;#0", "3*4=2r5;5+2=1r0;#0", "3*4=1r4;4+2=0r6;#6"


class TestRewards:
    @pytest.mark.parametrize("conversational", [True, False])
    def test_rewards(self, conversational):
        completions = [SOUND, LUCKY, WRONG, ""]
        if conversational:
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        columns = {"problem": ["3*4+2="] * 4, "solution": ["0"] * 4, "prompts": [None] * 4, "trainer_state": None}
        assert chain.answer_reward(completions, **columns) == [1.0, 1.0, 0.0, 0.0]
        assert chain.steps_reward(completions, **columns) == [1.0, 0.0, 0.0, 0.0]

    def test_a_spot_check_is_of_whole_problems_and_always_the_same(self):
        rng = random.Random(0)
        problems = [chain.make_problem(rng, 4) for _ in range(2000)]
        texts = [chain.write_trace(problem, rng, wrong_quotient=0.2) for problem in problems]
        spot, full = (
            reward(texts, problem=problems) for reward in (chain.spot_checked_steps_reward, chain.steps_reward)
        )
        assert all(here in (None, there) for here, there in zip(spot, full, strict=True))
        checked = {problem for problem, reward in zip(problems, spot, strict=True) if reward is not None}
        assert len(checked) / len(set(problems)) == pytest.approx(1 / chain.SPOT_SHARE, abs=0.03)
        again = chain.spot_checked_steps_reward([SOUND] * 2000, problem=problems)
        assert {problem for problem, reward in zip(problems, again, strict=True) if reward is not None} == checked

    def test_the_answer_reward_agrees_with_the_checker(self):
        rng = random.Random(0)
        problems = [chain.make_problem(rng) for _ in range(300)]
        texts = [chain.write_trace(p, rng, wrong_remainder=0.2)[: rng.choice([None, 20])] for p in problems]
        rewards = chain.answer_reward(texts, solution=[chain.answer_of(problem) for problem in problems])
        assert rewards == [float(checked.answer_correct) for checked in chain.check_completions(problems, texts)]
        assert 0 < sum(rewards) < 300

    def test_lengths_must_agree(self):
        with pytest.raises(ValueError):
            chain.steps_reward([SOUND], problem=["3*4+2="] * 2)


class TestMetrics:
    def test_by_hand(self):
        checks = chain.check_completions(["3*4+2="] * 8, [SOUND] * 3 + [LUCKY] + [WRONG] * 4)
        assert chain.accuracy(checks) == 4 / 8
        assert chain.strict_accuracy(checks) == 3 / 8
        assert chain.lucky_share(checks) == 1 / 4

    def test_nothing_to_count(self):
        assert math.isnan(chain.accuracy([]))
        assert math.isnan(chain.strict_accuracy([]))
        assert math.isnan(chain.lucky_share([check("3*4+2=", WRONG)]))
