"""Equations in free text: what is found, what holds, what is left alone, and how often that errs."""

import gc
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest

from benchmarks import equation_steps as benchmark
from reward_funcs import (
    equation_steps_reward,
    find_equations,
    get_reward_func,
    right_with_sound_equations_reward,
    sound_equations_reward,
)
from reward_funcs.equation_values import MAX_EXPONENT


HOLD = r"""
762\times 94=71,\!628
$1,\!234 + 1 = 1,\!235$
9/3² = 1
9/3**2 = 1
so he left a 350*.1 = $35 deposit
3 + 4 = 7
So he has 3 + 4 = 7 apples left.
he has 7 apples (3 + 4 = 7) and more
1,200 * 2 = 2,400
180*.05 = 9 days
5 * $1.50 = $7.50
-3 + 4 = 1
- 3 + 4 = 7
2) 3 + 4 = 7
**3 + 4 = 7**
24 – 3 = 21
4 x $1.50 = $6
4x5=20
3 times 4 = 12
3 plus 4 equals 7
2(3+4) = 14
(2)(3) = 6
2^10 = 1024
2 + 3 * 4 = 14
10 - 4 - 3 = 3
20/4/5 = 1
12 / 1/2 = 24
2^3^2 = 512
-2^2 + 5 = 1
2 1/2 * 2 = 5
2½ * 2 = 5
6 hours/day * 3 days = 18 hours
21 in the first row + 15 in the second row = 36
5 cm^2 + 3 cm^2 = 8 cm^2
15% of $80 = $12
20% * 50 = 10
5 / 20 * 100 = 25%
1/4 of the 200 = 50
1/4 = 25%
50 cents * 4 = $2
3 dozen * 2 = 72
2 hours + 30 minutes = 150 minutes
2 hours * 60 minutes/hour = 120 minutes
10/3 = 3.33
20/3 = 6.67
20/3 = 6.66
1.25 * 5 = 6.3
1000/7 ≈ 143
1000/7 = about 143
20 / 3 ≈ 7
60 * 34 ≈ 2000
47.12 / 100 = 0.47119999999999995
$\frac{3}{4} \times 20 = 15$
\(\frac12 + \frac13 = \frac56\)
\[ 2^{3} + 1 = \boxed{9} \]
3 \cdot 4 = 12\text{ apples}
1{,}000 + 1 = 1{,}001
48/2 = <<48/2=24>>24 clips
On day 3 he has 20 + 5 = 25
half of them, so 20 / 2 = 10 and so on
5 + 3 = 8 people, half of them tall
**Step 1:** 5 + 3 = 8
- **Total cost:** $5 + $3 = $8
**Profit:** (3 + 4) × 2 = 14
*Note:* 3 + 4 = 7
*Total* 3 + 4 = 7
**Step 1**: 3+4=7
**Day 2** 5 + 3 = 8
**Cost of 5 pens** 5 × 2 = 10
**Discount (20%)** $50 × 0.2 = $10
3 shirts × $20 = **$60**
5 × 3 = *15*
**5** * **3** = **15**
5 + 10 = __15__
2 ** 3 = 8
2**3 = 8
2\left(3 + 4\right) = 14
5 \left[ 2 + 3 \right] = 25
\left(-5\right)^2 - 4\left(1\right)\left(6\right) = 1
\bigl(5 + 3\bigr) * 2 = 16
\frac{180^\circ - 40^\circ}{2} = 70^\circ
\frac{90^\circ}{2} = 45^\circ
2/3 = 67%
1/3 = 33%
8 times because 16 / 2 = 8
The cube is 6*6*6 = 216
I am 15 + 2 = 17
5 + 3 = 8 ✓
2\frac{1}{2} + 1 = 3\frac{1}{2}
\frac{200}{3} = 66\frac{2}{3}
5 + 3 = \mathbf{8}
5 + 3 = \textbf{8}
\(3 \times 4\) = \(12\)
\[ 2^{3} + 1 = 9 \]
$\{3 + 4\} * 2 = 14$
10 \cdot 6 = 2\left(25 + 5\right)
20% of 50 = 10
5 + 3 = 8 (because 5 is more)
10 - 3 = 7 apples left
100% - 20% = 80%
1 + 2 = 3 \times 1
""".strip().splitlines()

WRONG = r"""
10% + 20% = 40%
60 miles / 2 hours = 31 miles per hour
1 kg + 250 mg = 3 kg
3 + 4 = 8. Is that so?
3 + 4 = 8! Is it?
3 + 4 = 8
1,200 * 2 = 2,401
10/3 = 3
10/3 = 3.3334
19*.01 = 0.1
20/3 = 6.65
1.25 + 2.50 = 3.74
2 + 3 * 4 = 20
10 - 4 - 3 = 9
15% of $80 = $13
50 cents * 4 = $3
2 hours + 30 minutes = 160 minutes
100 * 2 ≈ 199
60 * 34 ≈ 3000
2999 * 1 ≈ 2000
$\frac{3}{4} \times 20 = 16$
5/0 = 3
he has 7 apples (3 + 4 = 8) and more
5 + 3 = 8 + 2
1.5 * 1000 = 150 cm
4000 - 160 = 240 pounds
**Step 1:** 5 + 3 = 9
- **Total:** 3 + 4 = 8
3 + 4 = **$8**
2\left(3 + 4\right) = 15
20 - 5 = 16 apples left
20 - 5 = 16 apples remaining
17 / 5 = 9 with 2 left over
5 + 3 = 9 ✓
3 + 4 = 8 (because it is so)
2/3 = 65%
489 cents / 30 ounces = 16 cents per ounce
10 apples - 3 apples = 8 apples
5 apples and 3 oranges * 2 = 7
""".strip().splitlines()

LEFT_ALONE = r"""
She bought 3 books — 3 × 12 = 36 dollars
20 — 2 * 3 = 14
$\log_4 8 = \frac{3}{2}$
$\log_{4} 32 = 5/2$
$100 - 99 + 98 - \ldots - 1 = 50$
$\frac{\dots 3668}{2} = \dots 834$
$2\theta + 30 = 90$
$180 - 2\theta = 80$
$2 \times 5\pi \approx 31.4$
$\lfloor 7/2 \rfloor = 3$
$\lvert 3-5 \rvert = 2$
$10 \cos 60^\circ + 5 = 10$
$3^2 \pi = 9$
$5 \times 5 = 25\sqrt{3}$
2 a + 3 = 11
$c = 2/3$ and $a=0$
4-a + 15 = 25
9-4(4-m) = 0
$\frac{1}{2}ab = 6$
(6)(10)=(12)(DM)
\frac12(24)(x) = 120
Does $3 + 4 = 8$?
Does \(3 + 4 = 8\)?
Does **3 + 4 = 8**?
3 + 4 = 8 ?
3 + 4 does not equal 8
3 + 4 is not equal to 8
3 + 4 doesn't equal 8
3 + 4 \not= 8
$7/2+2 = \frac{11}2$
$\frac{11}2 + 1 = 13/2$
120 / 6 = 5 * 4!
$1\;234 + 1 = 1\;235$
12,34,567 + 1 = 12,34,568
2,5 × 2 = 5
5 / 2 = 2,5
$10/3 = 3.\overline{3}$
$1/3 = 0.\dot{3}$
10/3 = 3.(3)
1 kg - 250 g = 750 g
2 m + 50 cm = 250 cm
1 h + 30 min = 90 min
1 mile + 880 yards = 1.5 miles
x is 25.2 and -2 + 5 = 3
2/3 × 100 ≈ 0.667 × 100
49 × 21 ≈ 50 × 20
17 / 5 = 3, remainder 2
17 / 5 = 3 (remainder 2)
17/5 = 3 with a remainder of 2
17 / 5 = 3 R2
10 + 5 = 3 (mod 12)
$10 + 5 = 3 \pmod{12}$
$50 - 20% = $40
50 + 10% = 55
5 = 5
x = 5
2x + 3 = 11
70 = 3x - 5
a + 30 + T = 80
total = price * 3
20 - cost = 5
Day 2 = 5 + 3
3 dozen = 3 * 12
1/4 tank = 10 gallons
1/3 of the pizza = 4 slices
half of 10 + 5 = 10
twice 5 + 3 = 13
two thirds of 9 + 1 = 7
3 squared + 1 = 10
two parrots * 14 = 28
5! = 120
13 / 6 = 2 remainder 1
3 + 4 = 7? No
3 + 4 == 8
3 + 4 != 8
3 + 4 <= 8
8:40 - 6:00 = 2:40
sqrt(16) + 5 = 9
\sqrt{16} + 5 = 9
f(3) + 4 = 9
300 minutes = 5 * 61 minutes
10 * 3 = 5 hours and 30 minutes
20 - 5 = 1 +
10^99999 = 5
9^9^9^9 = 5
10 + 6 = 2 (5 + 3)
33 \cdot 11 + 55 \cdot 33 = 33 (11 + 55)
\frac{1}{2} 6 \cdot 4 = 12
$a + b = \frac{3}{2}$ and $ab = \frac{1}{2}$
We get $b = 3 + 4$ and $ab = 21$
Cost = 5 * 3 and Total = 20
x = 10 - 3 hence xy = 14
100% - 20% = 80% of $50
1 - 3/8 = 5/8 of the 40 students
17 ÷ 5 = 3 with 2 left over
17 ÷ 5 = 3 (with 2 left over)
17 ÷ 5 = 3 boxes with a remainder of 2
17 ÷ 5 = 3 \text{ with a remainder of } 2
13 / 6 = 2 full cycles with a remainder of 1 hour
17 ÷ 5 = 3 (rounded down)
17 ÷ 5 = 4 (rounded up)
10/3 = 3 approximately
1000 × 1.05^3 = 1158 (to the nearest dollar)
200/3 = 66.6...
Step 2 - 3 + 4 = 7
2 adults – 2 × $10 = $20
8*45 = 360 divided by 5 is 72
3 + 4 = 7 which is then multiplied by 2
60 / 20 = 3 times 2 hours
3 + 4 = 7 plus 2 is 9
Days 1-3 = 5 + 5 + 5
5 $10 bills × 10 = 50
15 4-legged animals * 4 = 60
50 sacks x 50 kg/sack = 2 500 kg
7 adults + Shonda (1) + 2 kids = 10
1 hour + 30 minutes = 31 minutes
12 inches + 10 feet = 22 feet
20% of 50 = 1000
$200 * 15% = $3000
100 * 10% = 1000
3 + 4 = 8 ❌
500 g × 3 = 1.5 kg
20 s × 3 = 1 min
""".strip().splitlines()


def verdicts(text):
    return [equation.holds for equation in find_equations(text)]


@pytest.mark.parametrize("text", HOLD)
def test_equations_that_hold(text):
    assert verdicts(text) == [True]


@pytest.mark.parametrize("text", WRONG)
def test_equations_that_do_not_hold(text):
    assert verdicts(text) == [False]


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_cannot_be_told_is_left_alone(text):
    assert verdicts(text) == []


@pytest.mark.parametrize(
    "text, expected",
    [
        ("15% of $80 = (15/100)*$80 = $12", [True, True]),
        ("5 + 3 = 8 + 2 = 10", [False, True]),
        ("5 * 4 = 21, and then 3 + 4 = 7", [False, True]),
        ("100% - 20% = 80% of $50 = $40", [True]),  # the first one may be meant up to `of`
        ("$1 - \\frac{1}{2} -\n\\frac{1}{5} = \\frac{3}{10}$", []),  # a formula over two lines
        ("$S = 5 + 3\\]From \\[r=15", []),
        ("T = 100 - 20 = 80", [True]),
        ("5*3 = 15 and 2+2 = 5, 1+1 = 2", [True, False, True]),
        ("3 + 4\n= 7\n&= 14/2 \\\\ &= 7*2", [True, True, False]),
        ("3 + 4 =\n7\n8 - 1 = 6", [True, False]),
        ("", []),
    ],
)
def test_chains_and_several(text, expected):
    assert verdicts(text) == expected


def test_where_an_equation_stands():
    text = "So 3 + 4 = $7 now."
    (equation,) = find_equations(text)
    assert text[equation.start : equation.equals] == "3 + 4 " and text[equation.end - 5 : equation.end] == "7 now"


def test_shares_and_soundness():
    texts = ["3 + 4 = 7, 2 * 2 = 5", "3 + 4 = 7", "no equation, 5 = 5", "3 + 4 = 8", ""]
    assert equation_steps_reward(texts) == [0.5, 1.0, None, 0.0, None]
    assert sound_equations_reward(texts, solution=["7"] * 5) == [0.0, 1.0, None, 0.0, None]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert equation_steps_reward(messages) == equation_steps_reward(texts)
    assert get_reward_func("equation_steps") is equation_steps_reward
    assert get_reward_func("sound_equations") is sound_equations_reward


def test_right_answers_are_paid_for_equations_that_hold():
    box = r" \boxed{7}"
    texts = ["3 + 4 = 7" + box, "3 + 4 = 7, 2 * 2 = 5" + box, "7" + box, "3 + 4 = 7" + box, "3 + 4 = 7, or 8", "no"]
    solution = ["7", "7", "7", "8", "7", "7"]
    logged = []
    columns = {"solution": solution, "log_metric": lambda name, value: logged.append((name, value))}
    assert right_with_sound_equations_reward(texts, **columns) == [1, 0, 0, 0, 0, 0]
    assert ("reward_checks/equations", 5 / 6) in logged  # if it falls, the policy stops writing them
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert right_with_sound_equations_reward(messages, solution=solution) == [1, 0, 0, 0, 0, 0]
    # a row without a gold; the table's column of answers is that of the accuracy reward, not twice in it
    assert right_with_sound_equations_reward(texts[:2], solution=[None, "7"], log_extra=None) == [None, 0]
    shown = []
    right_with_sound_equations_reward(texts, solution=solution, log_extra=lambda *column: shown.append(column))
    assert shown == []
    assert get_reward_func("right_with_sound_equations") is right_with_sound_equations_reward


def test_another_reward_may_say_whether_the_answer_is_right():
    def half_right(completions, gold, **kwargs):
        return [0.5 if one in text else -1.0 for text, one in zip(completions, gold, strict=True)]

    texts = ["3 + 4 = 7", "3 + 4 = 8", "3 + 4 = 7", "7"]  # wrong answers get the same with equations and without
    assert right_with_sound_equations_reward(texts, half_right, gold=["7", "8", "8", "8"]) == [0.5, 0, 0, 0]


def test_repeating_an_equation_does_not_raise_the_share():
    padded = "3 + 4 = 8. " + "1 + 1 = 2. 1+1=2 hats. 5 = 5. $1 + 1 = 2$ " * 20
    assert equation_steps_reward([padded]) == [0.5]


def test_odd_completions_are_counted():
    logged = {}
    assert equation_steps_reward([None, b"1+1=2", 7, [["x"]]], logged.__setitem__) == [None] * 4
    assert logged == {"reward_checks/odd_completions": 4.0, "reward_checks/equations": 0.0}


def test_against_pythons_arithmetic():
    draw = random.Random(0)
    for _ in range(500):
        numbers = [draw.randint(1, 30) for _ in range(draw.randint(2, 6))]
        text = str(numbers[0])
        for number in numbers[1:]:
            text += draw.choice([" + ", " - ", " * ", "*", " / "]) + draw.choice([str(number), f"({number} - 31)"])
        value = eval(text.replace(" / ", " / Fraction(1) / "), {"Fraction": Fraction})
        assert verdicts(f"{text} = {value.numerator}/{value.denominator} ") == [True], text
        assert verdicts(f"{text} = {value.numerator + 1}/{value.denominator} ") == [False], text


def seconds_of(function, texts):
    """Its processor seconds over the texts, best of three: collecting a big process's garbage takes most of one."""

    def once():
        start = time.process_time()
        for text in texts:
            function(text)
        return time.process_time() - start

    gc.collect()
    gc.disable()
    try:
        return min(once() for _ in range(3))
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "piece",
    ["(", "1,111", "= ", "1 + ", "1 a = ", "3x", "\\frac{", "**", "1 * (", "=1", "2^", "two ", "1 hour and ", "-", "(1)", "a" * 50, "9"],
)  # fmt: skip
def test_time_is_linear_in_the_text(piece):
    def seconds(length):
        return seconds_of(find_equations, [piece * (length // len(piece))])

    assert seconds(40_000) < 16 * max(seconds(10_000), 0.05)  # quadratic ones took minutes


def test_nothing_that_is_written_is_an_error():
    draw = random.Random(0)
    pieces = r"3 4.5 20% + - * ** / = ( ) { } \frac \left( \right) $ \[ \] and of times rounded left hours g kg /0 ^ x ... is & _ !"
    pieces = [*pieces.split(), "\n", " - ", " "]
    for _ in range(5_000):
        text = "".join(draw.choice(pieces) + draw.choice(["", " "]) for _ in range(draw.randint(3, 20)))
        for equation in find_equations(text):
            assert 0 <= equation.start < equation.equals < equation.end <= len(text)


def test_values_are_bounded():
    assert verdicts("2^64 = 18446744073709551616") == [True]
    too_large = [
        f"{'9' * 30}^{MAX_EXPONENT}^{MAX_EXPONENT} = 1",
        "9^64" + "*9^64" * 90 + " = 1",
        "9" * 500 + " + 1 = 2",
    ]
    assert [verdicts(text) for text in too_large] == [[]] * 3
    assert seconds_of(verdicts, too_large) < 1


def test_the_benchmark_changes_what_it_says():
    draw = random.Random(0)
    assert benchmark.without_annotations("4*2 = <<4*2=8>>8.") == ("4*2 = 8.", [(6, "4*2=8")])
    assert benchmark.other_value("20%*(1+.5)") == Fraction(3, 10) and benchmark.other_value("x+1") is None
    assert benchmark.rounds(Fraction(10, 3), "3.33") and not benchmark.rounds(Fraction(10, 3), "3")
    assert benchmark.changed("12", "tenfold", draw) == "120" and benchmark.changed("19", "last digit", draw) in (
        "18",
        "10",
    )
    measured = benchmark.measure(["So 4*2 = <<4*2=8>>8 hats.", "2*2 = <<2*2=4>>4"], seed=0)
    assert (measured["annotated"], measured["found"], measured.get("called wrong", 0)) == (2, 2, 0)
    assert measured["result, any digit: changed"] == 2 and measured["result, any digit: called right"] == 0


def test_error_rates_on_worked_solutions():
    """The rates of docs/rewards.md, on a sample."""
    folder = Path(__file__).parents[1].parent / "shared" / "worked_solutions"
    if not folder.exists():
        pytest.skip(f"no {folder}")
    table = pytest.importorskip("pyarrow.parquet").read_table(folder / "gsm8k_train.parquet", columns=["answer"])
    measured = benchmark.measure(table.to_pydict()["answer"][:400], seed=0)
    assert measured["found"] > 0.97 * measured["annotated"]
    assert measured["called wrong"] < 0.003 * measured["found"]
    wrong = {key: n for key, n in measured.items() if key.endswith(": changed")}
    missed = sum(measured[key.replace("changed", "called right")] for key in wrong)
    assert sum(wrong.values()) > 4_000 and missed < 0.01 * sum(wrong.values())


def test_no_text_raises():
    draw = random.Random(0)
    pieces = r"1 23 4.5 , . = + - * / ^ ** ( ) { } [ ] \frac \frac12 \text{a} ½ ² % x of times and half hour minutes 3 $ : ? ~ ≈ a".split()
    for _ in range(3000):
        text = "".join(draw.choice(pieces) + draw.choice(["", " ", "\n"]) for _ in range(draw.randint(1, 25)))
        for equation in find_equations(text + "= 1"):
            assert equation.start < equation.equals < equation.end


@pytest.mark.parametrize(
    "text, share",
    [
        ("8 plus 2 = 16, and 8 times 2 = 16", 0.5),
        (r"8 \div 2 = 16. Then 8 \times 2 = 16.", 0.5),
        ("3+4=7,5+2=8", 0.5),
        ("10 / 3 = about 3. So 10 / 3 = 3", 0.0),
        ("10 / 3 = 3. So 10 / 3 = about 3", 0.0),
        ("3 + 4 = 7, so 3 apples + 4 apples = 7 apples, and 2 * 2 = 5", 0.5),
    ],
)
def test_a_right_equation_does_not_stand_for_a_wrong_one(text, share):
    """Equations are the same if numbers and operations are; of the same the worst counts."""
    assert equation_steps_reward([text]) == [share]


def test_a_text_is_read_up_to_a_bound():
    assert find_equations("1 " * 49_993 + "x. 60 + 40 = 100") == []  # the bound cuts the last number
    assert len(find_equations("1 + 1 = 2. " * 20_000)) == 100_000 // 11 + 1
