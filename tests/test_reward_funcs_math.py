"""Mathematics: what is equal in value is accepted however it is written, and what is not is refused however close."""

import ast
import random
from pathlib import Path

import pytest

from reward_funcs import answers, math_accuracy_reward
from reward_funcs.answers import equal as quick_verdict
from reward_funcs.answers.comparison import equal_answers
from reward_funcs.answers.exact_numbers import parse_number
from reward_funcs.answers.normal_form import normal_form
from reward_funcs.answers.shapes import shape_of
from reward_funcs.answers.symbolic import equal_expressions
from reward_funcs.answers.units import same_unit, split_unit


EQUAL = {
    "numbers": [
        (
            r"0.5",
            [
                r"\frac12",
                "1/2",
                r"\dfrac{1}{2}",
                r"\tfrac 12",
                ".5",
                "0.50",
                "+0.5",
                r"50\%",
                r"\text{0.5}",
                r"\left(0.5\right)",
            ],
        ),
        (
            r"\frac{9}{7}",
            [r"1\frac{2}{7}", "9/7", r"1 2/7", r"\frac97", r"\frac{18}{14}", r"-\frac{-9}{7}", r"\frac{-9}{-7}"],
        ),
        (r"-\frac{3}{2}", ["-1.5", r"\frac{-3}{2}", r"\frac{3}{-2}", "-3/2", r"-1\frac12", "−1.5"]),
        (
            r"58,500",
            ["58500", r"58{,}500", r"58,\!500", r"58\,500", r"58 500", "58500.0", r"5.85\times 10^4", "5.85e4"],
        ),
        (r"11,\! 111,\! 111,\! 100", ["11111111100", "11,111,111,100"]),
        (r".0000672", [r"6.72\times 10^{-5}", "6.72e-5", r"6.72 \cdot 10^{-5}", "0.0000672"]),
        (r"0.\overline{3}", [r"\frac13", "0.333333"]),
        (r"\frac{1}{2^{98}}", [r"2^{-98}"]),
        (r"2^{2008}-2", [r"2(2^{2007}-1)"]),
        (r"924.0", ["924"]),
        (r"\mbox{four}", ["4", "Four"]),
        (r"3000000", [r"3 \text{ million}", "3 million"]),
        ("6", [r"2\cdot 3", "2(3)", "3!", r"\sqrt{36}"]),
    ],
    "surds and constants": [
        (
            r"\frac{\sqrt3}{3}",
            [
                r"\frac{1}{\sqrt{3}}",
                r"\frac{\sqrt{3}}{3}",
                r"3^{-1/2}",
                r"1/\sqrt3",
                r"√3/3",
                r"\sqrt{\frac13}",
                "sqrt(3)/3",
            ],
        ),
        (r"11\sqrt2", [r"11 \sqrt{2}", r"\sqrt{242}", r"11\cdot 2^{1/2}"]),
        (r"\frac{20000}{\pi}", ["6366.197724", r"20000/\pi", r"20000\pi^{-1}"]),
        (r"\tan 15^\circ", [r"2-\sqrt3", r"\tan \frac{\pi}{12}"]),
        (r"\csc 10", [r"\csc 10^\circ"]),
        (r"6-5i", ["-5i+6", r"6 - 5 i", r"6-5\sqrt{-1}"]),
        (r"12^{1/7}", [r"\sqrt[7]{12}"]),
    ],
    "units": [
        (r"864 \mbox{ inches}^2", ["864", r"864\text{ in}^2", "864 square inches", r"864\,\mathrm{in}^2"]),
        (r"\frac{270}7\text{ degrees}", [r"\frac{270}{7}", r"38\frac{4}{7}^\circ", r"\frac{270}{7}°"]),
        (r"\$32,\!348", ["32348", r"\$32348", "32,348 dollars", "$32,348", r"32348\text{ dollars}"]),
        (r"90^\circ", ["90", r"90^{\circ}", r"90\text{ degrees}", "90°"]),
        (r"5.4 \text{ cents}", ["5.4", "5.4 cents", "5.4¢"]),
        (r"50\%", ["50", r"50 \%", "0.5", r"\frac12", "50 percent", r"50\text{ percent}"]),
        (r"20", [r"20\%", "20 apples", r"20\text{ cm}", "20 dollars", r"20^\circ", "20 eggs per day"]),
        (r"\approx 8.24 \text{ mph}", ["8.24", "8.24 mph", r"8.24 \text{ miles per hour}"]),
        (r"\frac{1}{2}\text{ hour}", [r"\frac12 \text{ hr}", "0.5 hours"]),
        (r"12\sqrt{13}\text{ feet}", [r"12\sqrt{13}", r"12\sqrt{13} ft"]),
    ],
    "expressions": [
        (r"x^2+7x+10", [r"(x+2)(x+5)", r"x^{2} + 7x + 10", "10+7x+x^2", r"x^2+7x+10."]),
        (r"\frac{11+9a}{20}", [r"\frac{9a}{20}+\frac{11}{20}", r"\frac{9a+11}{20}", r"0.45a+0.55"]),
        (r"42x\sqrt{5x}", [r"42\sqrt{5x^3}"]),
        (r"2 \sin 5x \cos x", [r"\sin 6x+\sin 4x"]),
        (r"x^3+x^2+x+1", [r"\frac{x^4-1}{x-1}"]),
        (r"\sqrt{x^2}", [r"|x|", r"\lvert x\rvert"]),
        (r"a^2+b^2+c^2-4R^2", [r"-4R^2+c^2+b^2+a^2"]),
    ],
    "other spellings": [
        ("6", ["√36", r"2\ast 3", "2·3", "6\u200b"]),
        (r"\sqrt{x+1}", ["√(x+1)", "√{x+1}", "sqrt(x+1)", r"\sqrt(x+1)"]),
        ("x^2+1", ["x**2+1", "x²+1"]),
        (r"\frac{\pi}{2}", ["pi/2", r"\frac\pi2", r"\cfrac\pi2", "π/2"]),
        (r"10080\sqrt2", [r"10\,080\sqrt2", r"10{,}080\sqrt2"]),
        (r"\frac{x+1}{2}", [r"{x+1 \over 2}"]),
        ("2-3i", [r"2-3\mathrm{i}", "2−3i", "2–3i"]),
        ("3x^2", [r"3\mathit{x}^2", r"3\boldsymbol{x}^2"]),
        (r"\sin 5", [r"\operatorname{sin} 5", r"\mathrm{sin}\,5"]),
        (r"\arctan 2", [r"\arctg 2", r"\text{arctan}(2)"]),
        (r"\binom{n}{2}", [r"\tbinom{n}{2}", r"\dbinom{n}{2}"]),
        ("|x|", [r"\vert x\vert", r"\left\lvert x\right\rvert"]),
        ("0.5", ["1÷2", "1⁄2"]),
        (r"[2,\infty)", [r"x\ge 2", r"x\geqslant 2", "x≥2", "[2,∞)", "[2, infty)", r"\lbrack 2,\infin\rparen"]),
        ("(1,2)", [r"1\lt x\lt 2", "（1，2）", r"\langle 1,2\rangle", r"2\gt x\gt 1"]),
        (r"(-\infty,0)\cup(0,\infty)", [r"x\ne 0", "x≠0", "(−∞,0)∪(0,∞)"]),
        ("1,-2", [r"x=1\lor x=-2", r"1\land -2", r"x\in\{-2,1\}", "x∈{-2,1}"]),
        (r"1\pm\sqrt2", ["1±√2", "1∓√2"]),
        (r"\text{does not exist}", ["doesn’t exist", "“Does not exist”"]),
        ("1,080", ["1\u202f080", "1\u00a0080"]),
    ],
    "equations and names": [
        ("x=5", ["5", "x = 5", r"x=\frac{10}{2}", "5=x"]),
        ("5", ["x=5", r"x = 5", r"f(2)=5", r"\text{Area} = 5", "a+b=5", r"m\angle ABC = 5^\circ", "x=2+3=5"]),
        ("y = 2x + 3", ["2x+3", "y=3+2x", "y-2x=3", r"2x-y+3=0"]),
        ("5x - 7y + 11z + 4 = 0", ["-5x+7y-11z-4=0", "10x-14y+22z=-8"]),
        (r"\tan \theta = 2\theta", [r"2\theta=\tan\theta", r"2\tan\theta=4\theta"]),
        ("AB=9, CD=4", ["CD=4, AB=9"]),
        (r"\$\dfrac23 \approx \$0.67", [r"\frac23", "0.67"]),
        (r"0.56 = 56\%", [r"56\%", "0.56"]),
        (r"\sqrt{2}", [r"x=\sqrt2\approx 1.41"]),
    ],
    "intervals, tuples, sets": [
        ("(3,4]", [r"\left(3, 4\right]", r"x\in(3,4]", r"3 < x \le 4"]),
        (r"x \in [-2,7]", [r"x\in[-2, 7.0]", "[-2,7]", r"-2\le x\le 7"]),
        (r"(2,\infty)", ["x>2", r"(2,+\infty)", r"\left( 2, \infty \right)"]),
        (r"(-\infty, 2) \cup (3, \infty)", [r"(3,\infty)\cup(-\infty,2)"]),
        (r"(-\infty, 0) \cup (0, \infty)", [r"\mathbb{R}\setminus\{0\}", r"x\neq 0"]),
        (r"\left( 3, \frac{\pi}{2} \right)", [r"(3,\pi/2)", r"(3, 0.5\pi)"]),
        (r"(6,235^\circ)", ["(6, 235)"]),
        (r"\{1\pm\sqrt{5},-2\}", [r"-2, 1+\sqrt5, 1-\sqrt5", r"\{-2, 1-\sqrt{5}, 1+\sqrt{5}\}"]),
        (r"3 \pm 2 \sqrt{2}", [r"3-2\sqrt2, 3+2\sqrt2", r"3-2\sqrt2 \text{ or } 3+2\sqrt2"]),
        ("1,-2", ["-2, 1", r"\{-2,1\}", r"1 \text{ and } -2", "x=1, x=-2", "1;-2"]),
        (r"2, 3, \text{ and } 4", ["4,3,2", r"\{2,3,4\}"]),
        ("(-4, 27);(2, 15)", ["(2,15),(-4,27)"]),
        ("[1, 2, 3]", ["[1,2,3]", "(1,2,3)", r"\left[1,\,2,\,3\right]", "[1.0, 2.0, 3.0]"]),
        (r"\{5\}", ["5", r"\{\sqrt{25}\}"]),
        (r"\sqrt2", [r"\{\sqrt2\}"]),
        (r"\emptyset", [r"\{\}", r"\varnothing"]),
    ],
    "matrices": [
        (
            r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}",
            [
                r"\begin{bmatrix} -\frac{1}{3} \\ \frac23 \end{bmatrix}",
                r"\left[\begin{array}{c} -1/3 \\ 2/3 \\ \end{array}\right]",
            ],
        ),
        (r"\begin{pmatrix} 1 & -1 \\ 1 & \phantom -1 \end{pmatrix}", [r"\begin{bmatrix}1&-1\\1&1\end{bmatrix}"]),
    ],
    "other notations": [
        ("52_8", ["52_{8}", r"52_{\text{8}}", r"52_{(8)}", r"52_{\text{eight}}"]),
        (r"\text{A5}_{11}", ["A5_{11}"]),
        ("5:6", ["5 : 6"]),
        (
            r"4\!:\!51\!:\!06 \text{ p.m.}",
            ["4:51:06", "4:51:06 pm", "4:51:06 PM", r"4:51:06\text{ PM}", "4:51:06 p.m."],
        ),
        (r"05\!:\!00", ["5:00"]),
        (r"\text{Evelyn}", ["Evelyn", r"\textbf{evelyn}", r"\mathrm{Evelyn}", r"\text{ Evelyn. }"]),
        (r"\text{A,B,E}", ["A, B, and E", "E,B,A", r"\text{A}, \text{B}, \text{E}"]),
        (r"\text{two lines}", [r"\text{two} \text{ lines}", "Two lines"]),
        ("not exist", [r"\text{does not exist}", "DNE"]),
        ("True", [r"\text{true}", "TRUE", r"\textbf{True}", "Yes"]),
        ("CAKE", [r"\text{CAKE}"]),
    ],
}

DIFFERENT = {
    "numbers": [
        ("18", ["-18", "17", "19", "18.5", "180", "1.8", "81"]),
        (".0000672", ["0", "0.000067", "-.0000672", ".000672"]),
        ("1000000", ["1000001", "999999"]),
        ("43.75", ["43.750001", "43.7", "44"]),
        (r"\frac{1}{3}", ["0.333334", "0.33", "3", r"\frac{1}{-3}"]),
        ("1 4/5", ["14/5", "4/5"]),
        (r"\frac{1}{2^{98}}", ["0", r"\frac{1}{2^{97}}"]),
        ("2^{2008}-2", ["2^{2008}-3", "2^{2008}"]),
        ("20", ["0.2", r"0.2\%"]),
        ("3", [r"3 \text{ million}", "3k", "3x"]),
        ("10000", ["10^{3}", "1,000", "(10,000)"]),
    ],
    "surds and constants": [
        (r"\sqrt{51}", [r"-\sqrt{51}", r"\sqrt{15}", "51", "7.14", "7.1414"]),
        (r"\pi", ["3.14", "3.14159", r"-\pi", r"\frac{22}{7}"]),
        (r"10^{20}\sqrt2", [r"10^{20}\sqrt2+1"]),
        ("6+9i", ["6-9i", "9+6i", "6+9"]),
    ],
    "units": [
        (r"40\text{ feet}", [r"40\text{ min}", r"40\text{ square feet}", "41 feet"]),
        (r"5.4 \text{ cents}", [r"5.4 \text{ dollars}", r"\$5.4"]),
        (r"8\!:\!34 \text{ p.m.}", [r"8\!:\!34 \text{ a.m.}", "8:35"]),
        ("5", [r"5 \text{ or } 6", "5 and 6"]),
    ],
    "expressions": [
        ("x^2+7x+10", ["x^2+7x+11", "x^2-7x+10", "y^2+7y+10", "(x+2)(x-5)"]),
        ("2D", ["2d", "2"]),
        ("4R^2", ["4r^2"]),
        ("2s", ["2", "2t"]),
        ("|x|", ["x"]),
        (r"x\sqrt{x}", [r"-x\sqrt{x}"]),
        ("CAKE", ["KACE", "CAK", "-CAKE", r"\sqrt{CAKE}"]),
        (r"2k", ["2k+1", "k", "-2k"]),
    ],
    "equations": [
        ("x=5", ["y=5", "x=-5", "x>5", r"x \neq 5"]),
        ("5", ["x+3=5", "2x=5", "x=2+2=5", "x>5"]),
        ("0", ["x+y+z=0", "2x=0"]),
        ("x+y+z=0", ["x+y-z=0", "0", "x+y+z=1"]),
        (r"\tan\theta=2\theta", [r"\tan\theta=3\theta", r"2\theta"]),
        ("y = -2x", ["y=2x", "y=-2x+1", "y=-2"]),
    ],
    "intervals, tuples, sets": [
        ("(2,4)", ["(4,2)", "2,4", "[2,4]", "(2,4]", r"\{2,4\}", "(2,5)", "(-2,4)"]),
        ("(3,4]", ["[3,4)", "(3,4)", "[3,4]", "(3,5]"]),
        (r"x\in[0,1]", [r"y\in[0,1]", r"x\in[0,1)"]),
        ("5", [r"\{5,6\}", r"\{6\}"]),
        ("[2,10]", ["2,10", "[2,11]", "(2,10)"]),
        (r"(-\infty,3)\cup(3,\infty)", [r"(-\infty,3]\cup(3,\infty)", r"(-\infty,\infty)", r"(-\infty,3)"]),
        (r"\mathbb{R}", [r"(0,\infty)"]),
        (r"\{2,3\}", [r"\{2,4\}", "2", r"\{2,3,4\}", "(2,3)"]),
        (r"75^\circ, 75^\circ", [r"75^\circ"]),
        ("1,2", [r"x\in(1,2)", r"x\in\{1,3\}"]),
        ("(1,2)", [r"x\in\{1,2\}", r"1\le x<2"]),
        ("1,1", [r"x\in\{1\}", "1"]),
        (".0000672, 1", [r"x\in\{.000067,1\}", ".000067, 1"]),
        ("[1, 2, 3]", ["[1,3,2]", "[1,2]", "[1,2,4]", "1,2,4"]),
        (r"3 \pm 2 \sqrt{2}", [r"3+2\sqrt2", r"3 \pm \sqrt{2}"]),
    ],
    "matrices": [
        (
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
            [
                r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}",
                r"\begin{pmatrix} 1 & 2 \\ 3 & -4 \end{pmatrix}",
                "(1,2,3,4)",
            ],
        ),
        (r"\begin{pmatrix} .0000672 \\ 1 \end{pmatrix}", [r"\begin{pmatrix} .000067 \\ 1 \end{pmatrix}"]),
        (
            r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
            [r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"],
        ),
    ],
    "other notations": [
        ("52_8", ["52", "42", "52_9", "53_8"]),
        ("9:24", [r"\frac{3}{8}", "9:25", "24:9"]),
        (r"\text{Evelyn}", ["Eve", "Carla", "5"]),
        (r"\text{A,B,E}", ["A,B", "A,B,D", "A,B,E,F"]),
        ("True", ["False", "No", "1", "not true"]),
        (r"\text{Softball, Kickball, Picnic}", [r"\text{Kickball, Softball, Picnic}"]),
    ],
}


def pairs(table):
    return [
        pytest.param(gold, other, id=f"{gold} | {other}")
        for rows in table.values()
        for gold, all_ in rows
        for other in all_
    ]


@pytest.mark.parametrize(("gold", "answer"), pairs(EQUAL))
def test_equal_in_value_is_accepted(gold, answer):
    assert equal_answers(gold, answer, equal_expressions)
    assert quick_verdict(gold, answer) in (True, None)


@pytest.mark.parametrize(("gold", "answer"), pairs(DIFFERENT))
def test_near_misses_are_refused(gold, answer):
    assert not equal_answers(gold, answer, equal_expressions)
    assert quick_verdict(gold, answer) in (False, None)


def test_the_reward_decides_as_the_comparison_does():
    """Through boxes, batches and worker processes, plain and conversational, on a sample of both tables."""
    equal = [(gold, answer) for rows in EQUAL.values() for gold, answers in rows for answer in answers[:1]]
    different = [(gold, answer) for rows in DIFFERENT.values() for gold, answers in rows for answer in answers[:1]]
    golds, answers = zip(*equal, *different, strict=True)
    plain = [rf"So it is $\boxed{{{answer}}}$." for answer in answers]
    expected = [1.0] * len(equal) + [0.0] * len(different)
    assert math_accuracy_reward(plain, golds) == expected
    assert math_accuracy_reward([[{"role": "assistant", "content": text}] for text in plain], golds) == expected


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (r"\boxed{7}", 1.0),
        (r"First \boxed{3}, no: \boxed{7}", 1.0),
        (r"First \boxed{7}, no: \boxed{3}", 0.0),
        (r"It is 7, that is \boxed{8}", 0.0),
        (r"\boxed{7} or rather \boxed{", 0.0),
        (r"\boxed{7} or rather \boxed{}", 0.0),
        (r"\boxed{7", 0.0),
        (r"The answer is 7.", 0.0),
        (r"\boxed 7", 1.0),
        (r"$\boxed{\boxed{7}}$", 1.0),
        (r"\boxed{x = 7}. Done, \(7\)", 1.0),
        (r"\fbox{7}", 1.0),
        ("", 0.0),
    ],
)
def test_only_the_last_box_counts(completion, score):
    assert math_accuracy_reward([completion], ["7"]) == [score]


def test_rows_without_a_gold_are_unscorable():
    assert math_accuracy_reward([r"\boxed{7}"] * 4, [None, "", "7", float("nan")]) == [None, None, 1.0, None]
    assert math_accuracy_reward([r"\boxed{}"], [r"There are $\boxed{}$ primes."]) == [0.0]


def test_golds_that_are_not_text():
    answers = [r"\boxed{\text{True}}", r"\boxed{[1, 2]}", r"\boxed{\frac12}", r"\boxed{7}"]
    assert math_accuracy_reward(answers, [True, [1, 2], 0.5, 7]) == [1.0] * 4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 234.5", "2469/2"),
        (r"1\frac{1}{2}", "3/2"),
        ("-1 1/2", "-3/2"),
        (r"0.1\overline{6}", "1/6"),
        ("1e3", "1000"),
    ],
)
def test_numbers_are_read_exactly(text, value):
    assert str(parse_number(normal_form(text)).value) == value


@pytest.mark.parametrize("text", ["1,2", "12 34", "2/0", "x", "1e9999", "1/2/3", ""])
def test_what_is_no_number_is_not_read_as_one(text):
    assert parse_number(normal_form(text)) is None


def test_no_string_breaks_the_reader():
    """What is read in the trainer's own process must never raise: here on random pieces of LaTeX."""
    pieces = r"\frac { } ( ) [ ] \{ \} 1 23 x A = < \leq , ; \text{ and or \pm \cup \infty - + ^ _ \sqrt \pi % $ \$ ° ^\circ \\ & . 0.5"
    pieces = [
        *pieces.split(),
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        " ",
        "\n",
        "\ud800",
        "√",
        r"\left",
        r"\right",
        "million",
        "cm",
    ]
    draw = random.Random(0)
    for _ in range(3000):
        gold, answer = ("".join(draw.choices(pieces, k=draw.randint(1, 15))) for _ in range(2))
        assert quick_verdict(gold, answer) in (True, False, None)
        assert quick_verdict(gold, gold) in (True, False)


def test_shapes_keep_apart_what_parsers_confuse():
    kinds = {
        text: shape_of(normal_form(text)).kind
        for text in ["(2,4)", "2,4", "2,400", "52_8", "9:24", "CAKE", "xy", r"\text{(C)}"]
    }
    assert list(kinds.values()) == ["tuple", "list", "number", "place_value", "ratio", "words", "expression", "letter"]


def test_units_of_one_measure_agree():
    units = [
        split_unit(normal_form(text))[1]
        for text in (r"5\text{ ft}", "5 feet", "5 foot", r"5\text{ feet}^2", "5 square ft")
    ]
    assert same_unit(units[0], units[1]) and same_unit(units[1], units[2]) and same_unit(units[3], units[4])
    assert not same_unit(units[0], units[3])
    assert split_unit("x") == ("x", None) and split_unit("5x") == ("5x", None)


def test_the_comparison_of_answers_has_one_door():
    """The rest of the package imports nothing of it but what `reward_funcs.answers` exports."""
    package = Path(answers.__file__).parents[1]
    room = {path.stem for path in (package / "answers").glob("*.py")} - {"__init__"}
    for path in package.glob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        names = {
            alias.name
            for node in imports
            if node.module in ("answers", "reward_funcs.answers")
            for alias in node.names
        }
        assert names <= set(answers.__all__), path
        assert not [node.module for node in imports if (node.module or "").rpartition("answers.")[2] in room], path


def test_the_door_says_when_algebra_is_needed():
    algebra = answers.load_algebra()
    for gold, answer, quick, slow in [
        ("0.5", r"\frac12", True, True),
        ("0.5", r"\frac13", False, False),
        (r"\sqrt8", r"2\sqrt2", None, True),
        (r"\sqrt8", r"3\sqrt2", None, False),
    ]:
        assert answers.equal(gold, answer) is quick and answers.equal(gold, answer, algebra) is slow
    for gold, quick, slow in [
        ("0.5", True, True),
        (r"\sqrt8", None, True),
        (r"\frac{", None, False),
        ("", False, False),
    ]:
        assert answers.is_comparable(gold) is quick and answers.is_comparable(gold, algebra) is slow
