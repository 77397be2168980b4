"""Right and wrong answers as models, other graders' tests and adversaries write them: gold -> answers, by kind."""

RIGHT = {
    "names": [
        ("(2,3)", ["x=2, y=3", "y=3, x=2", r"x=2 \text{ and } y=3", "(x,y)=(2,3)", "(y,x)=(3,2)", r"(a,b) = (2,3)"]),
        ("x=2, y=3", ["(2,3)", "2,3", "(x,y)=(2,3)", "y=3, x=2", "(y,x)=(3,2)", r"x = 2 \text{ and } y = 3"]),
        ("(p,q)=(3,2)", ["(3,2)", "p=3, q=2", "q=2, p=3", "(q,p)=(2,3)", "(p, q) = (3, 2)"]),
        ("S_1:S_2=7:32", ["7:32", "S_1 : S_2 = 7 : 32", r"S_{1}:S_{2}=7:32"]),
        ("2:3", ["x:y=2:3", "a:b = 2:3", "2 : 3"]),
        ("|AB|=1", ["1", "|AB| = 1", r"\left|AB\right|=1"]),
        (r"\angle ABC = 30^\circ", ["30", r"30^\circ"]),
        (r"\overline{AB}=5", ["5"]),
        ("P(A)=0.5", ["0.5", r"\frac12"]),
        ("[3]", ["3", "[3]", "3.0"]),
        ("[4, 1, 2, 0]", ["4,1,2,0", "[4,1,2,0]", "4, 1, 2, 0"]),
        (r"\{x:x>1\}", [r"\{x \mid x>1\}", r"(1,\infty)", "x>1", r"\{t : t > 1\}", r"\{x\in\mathbb{R} : x>1\}"]),
        ("(1,\\infty)", [r"\{x:x>1\}", r"\{x\mid x>1\}"]),
        (r"a \land b", [r"a\land b", r"a \wedge b"]),
        ("f'(x)", ["f'(x)", r"f^{\prime}(x)", "f^\\prime(x)"]),
        ("y''", ["y''", r"y^{\prime\prime}"]),
        ("2y'", ["y'+y'", "y'\\cdot 2"]),
    ],
    "bound letters": [
        ("55", [r"\sum_{k=1}^{10} k", r"\sum_{i=1}^{10} i"]),
        (r"\frac12", [r"\int_0^1 x\,dx", r"\int_{0}^{1} x dx", r"\int_0^1 x\,\mathrm{d}x"]),
        ("120", [r"\prod_{k=1}^{5} k"]),
        ("1", [r"\lim_{x\to 0}\frac{\sin x}{x}", r"\lim_{x \to 0} \frac{\sin x}{x}", r"\lim_{n\to\infty}\frac{n}{n+1}"]),
        ("10", [r"{5 \choose 2}", r"\binom{5}{2}", r"\binom52", r"5 \choose 2"]),
        (r"\frac{n(n+1)}{2}", [r"\sum_{k=1}^{n} k"]),
        (r"\begin{pmatrix}4\\6\end{pmatrix}", [
            r"\begin{pmatrix}1\\2\end{pmatrix}+\begin{pmatrix}3\\4\end{pmatrix}", r"2\begin{pmatrix}2\\3\end{pmatrix}",
            r"\begin{pmatrix}4&6\end{pmatrix}^T", r"\begin{pmatrix}4&6\end{pmatrix}^{T}", r"\frac{1}{2}\begin{pmatrix}8\\12\end{pmatrix}",
        ]),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", [r"\begin{pmatrix}1&3\\2&4\end{pmatrix}^T", r"\frac{1}{2}\begin{bmatrix}2&4\\6&8\end{bmatrix}",
            r"\begin{pmatrix}1&3\\2&4\end{pmatrix}^\top"]),
    ],
    "dress": [
        ("5", [
            r"\textcolor{blue}{5}", r"{\color{blue}5}", r"\color{red}{5}", r"\color{red} 5", r"\underline{5}", r"\large 5", r"\Large{5}", r"\mathbf{5}",
            "**5**", "`5`", "__5__", "*5*", r"\text{The answer is } 5", r"\text{Answer: } 5", "Answer: 5", "The answer is 5", "the final answer is 5.",
            r"\text{Therefore, the answer is } 5", "Final answer: 5", "**Answer:** 5", r"\boldsymbol{5}", r"\bm{5}", r"\mathbf{\textcolor{red}{5}}",
            r"\colorbox{yellow}{5}", r"\fbox{5}", r"\huge 5", r"{\bf 5}", r"\mathrm{5}", r"\displaystyle 5", r"\ 5\ ", r"\,5\,", "'5'", '"5"',
            r"\underline{\underline{5}}", r"= 5", "5\\\\", r"\textbf{Answer: } 5", "Result: 5", r"\text{The value is } 5", r"\text{So, } 5", "It is 5",
            r"\text{the number } 5", r"\textbf{5}",
        ]),
        (r"\frac12", [r"\color{blue}{\frac{1}{2}}", r"\underline{\frac12}", r"\text{The answer is } \frac{1}{2}", r"\large \frac12", "**1/2**", r"\textcolor{red}{\dfrac{1}{2}}"]),
        ("142", ["142 km/h", r"142\,\mathrm{m\,s^{-1}}", "142nd", r"142\text{nd}", r"142^{\text{nd}}", r"142^{nd}", r"142\ \mathrm{km/h}", r"142\text{ km/h}", "142 m/s",
            r"142 \text{ kg}\cdot\text{m}^2", r"142\,\text{N}\cdot\text{m}", r"142\,\frac{\text{m}}{\text{s}}", r"142\,\mathrm{m/s^2}", r"142\ \text{m}^2", r"142\,\mathrm{cm}^{3}",
            r"142\,\mathrm{J\,kg^{-1}\,K^{-1}}", r"142\text{ km per hour}", "142 km per hour", r"142~\mathrm{cm^2}", r"142\;\mathrm{kJ/mol}", r"142\,\mathrm{W/m^2}", r"\$142", "142 dollars",
            "142 students", r"142\text{ ways}", "142 square units", "142 units squared", r"142\text{ m squared}", "142 inches", r"142\text{ in}", "142 squares", "142 people", "142 in total", r"142^\circ\text{C}", r"142^\circ \mathrm{F}", r"142\ \Omega", r"142\,\mu\text{m}",
        ]),
        (r"\emptyset", [r"\text{No solution}", "no solutions", r"\text{no solution}", r"\varnothing", r"\{\}", r"\text{No real solutions}", r"\text{empty set}"]),
        (r"\text{no solution}", [r"\emptyset", "No solutions"]),
        (r"\log_{10} 5", [r"\lg 5", r"\lg(5)", r"\log_{10}{5}"]),
        ("2", [r"\lg 100", r"\log_{10} 100"]),
        ("True", ["The statement is true", r"\text{The statement is true.}", "It is true", r"\text{This is true}", "**True**", "Answer: True", "true."]),
        ("False", ["The statement is false", r"\text{False}", "The answer is False", "No"]),
        (r"\text{Evelyn}", [r"\text{The answer is Evelyn}", "**Evelyn**", "Answer: Evelyn", r"\textcolor{blue}{\text{Evelyn}}", '"Evelyn"', "`Evelyn`"]),
        ("6 hours 30 minutes", [r"6\text{ hours }30\text{ minutes}"]),
        ("-3", ["negative 3", r"\text{negative three}", "Hence -3", r"\therefore -3", r"-3 \checkmark", "exactly -3", "Ans: -3"]),
        ("x^2+1", [r"**x^2+1**", r"\color{blue}{x^2+1}", r"\text{The answer is } x^2+1", r"\boxed{x^2+1}", r"\mathbf{x^2+1}"]),
        ("(1,2)", [r"\textcolor{red}{(1,2)}", r"\text{The answer is } (1,2)", "**(1,2)**", r"(\mathbf{1}, \mathbf{2})"]),
    ],
}  # fmt: skip

WRONG = {
    "words that change a value": [
        ("12", ["12 dozen", r"12\text{ dozen}", r"12\text{ gross}", "12 score", "12 pairs"]),
        ("5", [
            "5 squared", "5 square", "5 cube", r"5\text{ square}", r"5\text{ squared}", "5 cubed", "5 tenths", r"5\text{ tenths}", "5 hundredths", "5 hundred", "5 thousandths", "5 point five", r"5\text{k}", r"5\text{ k}", "5k", "5 K",
            r"5\text{M}", r"5\text{ bn}", "5 lakh", "5 crore", r"5\text{ crore}", r"5\text{ million}", "5 mil", r"5\text{ factorial}", "5 incorrect", "5 wrong", r"5\text{ (wrong, it is 6)}",
            "5 (wrong, it is 6)", "5 (or 6)", r"5\text{ or so}", r"5\text{ or more}", "5 plus", "5 and a half", r"5\text{ and a half}", "5 halves", "5 percent of 3", "5 quarters", "5 half",
            "5 thirds", "5th root", r"5\text{ divided by six}", "5 over 2", "5 times two", "5 times", "5 twice", "5 doubled", "5 modulo 3", r"5\text{ mod }3", "5 less", "5 more", "5 minus one",
            r"5\text{ base seven}", "5 base 7", r"5\text{ in base }7", "5 is not the answer", "5 is wrong", "5 not", "5 negative", r"5\text{ below zero}", r"5\text{ to the power of two}", "5 cents short",
            r"\text{not }5", "not 5", "negative 5", "minus 5", r"\text{minus }5", r"\text{half of }5", "half of 5", "twice 5", r"\text{at least }5", "at least 5", "more than 5", r"\text{the square of }5",
            r"\text{any number but }5", r"\text{anything except }5", "5 is too small", r"5\text{ to }9", "5 to 9", "5-9", "5 - 9", "5..9", "5\\ldots 9", r"5\text{ is incorrect}", r"5\text{, no, }6",
            "5 ppm", r"5\text{ per mille}", "5‰", "5 myriad", "5 nonillion", "5 deca", "5 hecto", "5 reciprocal", "5 inverse", r"5^{\text{-1}}", "5 point 5", "5 point", "5!", "5'",
            r"\overline{5}", r"\bar{5}5", r"5\text{ fold}", "5 exponent 2", "5 to the third", r"5 \text{ of } 6", "5 of 6", r"5\text{ out of }6", "5 out of 6", "5 in 6", r"5\text{ in }6", "1 in 5",
            r"5 \text{ remainder } 2", "5 R 2", "5 r 2", "5 remainder 2", r"5\text{ or maybe six}", r"\sim 5", r"\not 5", r"\neg 5", r"\lnot 5", r"\cancel{5}", r"\xcancel{5}", r"\sout{5}", "~~5~~",
        ]),
        ("4", ["4 point five", "4 crore", r"4\text{ factorial}", "4 incorrect", "4 fortnights ago, no"]),
        ("3", ["3 quarters", r"3\text{ divided by six}", r"3\text{ quarters}", "3 tens", r"3\text{ dozen eggs}"]),
        ("1", ["1 half", r"1\text{ half}", "1 third", "1 quarter"]),
        ("6", ["6 hours thirty minutes", r"6\text{ hours thirty minutes}", r"6\text{ hours }30\text{ minutes}", "6 hours 30 minutes", r"6\text{ ft }2\text{ in}", "6 feet 2 inches", "6 ft 2"]),
    ],
    "zero": [
        ("0", [
            r"0\text{ to }9", r"\text{not }0", r"\text{any number but }0", r"\text{undefined}\cdot 0", r"0\text{ undefined}", r"0 \cdot \text{undefined}", "undefined * 0", "0 or 1", r"\text{nonzero}",
            r"0\cdot\infty", r"\frac{0}{0}", "0/0", r"\text{anything}\cdot 0", r"0\text{ is wrong}", r"\text{wrong}-\text{wrong}", r"\text{a}-\text{a}", r"\neq 0", r"\text{DNE}\cdot 0", r"0\text{ through }9",
            r"\text{greater than }0", "0 < x", "x > 0", r"\text{no}", "none", "0 to 9", "0-9", r"0^{\text{th}}\text{ root}", r"\text{anything but }0", r"0\text{ dozen or }1",
        ]),
        ("1", [r"\text{wrong}^0", r"\frac{\text{wrong}}{\text{wrong}}", r"1^{\text{wrong}}", r"\text{not }1"]),
        (r"\sqrt2", [r"\text{not }\sqrt2", r"\sqrt2\text{ is wrong}", r"\sqrt2\text{ to }9", r"\sqrt{2}\text{ squared}", r"\text{half of }\sqrt2", r"\sqrt2 \text{ dozen}", r"\sqrt2 + 0\cdot\text{wrong}", r"\text{minus }\sqrt{2}"]),
        ("x^2", [r"\text{not }x^2", r"x^2\text{ wrong}", r"x^2 \text{ times two}", r"\text{twice }x^2"]),
    ],
    "names": [
        ("x=2,y=3", ["3,2", "(3,2)", "x=3,y=2", "y=2,x=3", "(y,x)=(2,3)", "x=2", "2", "a=2,b=3", "x=2,y=3,z=4"]),
        ("(2,3)", ["(y,x)=(2,3)", "y=2,x=3", "x=3,y=2", "(3,2)", "2,3", r"\{2,3\}"]),
        ("(p,q)=(3,2)", ["(2,3)", "(q,p)=(3,2)", "p=2,q=3", "2,3"]),
        ("2:3", ["y:x=2:3", "b:a=2:3", "3:2", "x:y=3:2"]),
        ("S_1:S_2=7:32", ["32:7", "S_2:S_1=7:32", r"\frac{7}{32}"]),
        (r"a \land b", [r"a \lor b", r"\text{a or b}", r"\neg a \land b", r"a \to b"]),
        (r"a \lor b", [r"a \land b"]),
        (r"p \to q", [r"q \to p", r"p \land q"]),
        (r"x<1 \text{ or } x>5", [r"x<1 \text{ and } x>5"]),
        (r"\frac{dy}{dx}", [r"\frac{dx}{dy}"]),
        ("f'(x)", ["f(x)", "f''(x)", "g'(x)", "f'(y)"]),
        ("y''", ["y'", "y"]),
        ("y'", ["y''", "y"]),
        ("2y'", ["2y", "2y''"]),
        (r"\{x:x>1\}", [r"\{x:x<1\}", r"\{x : x\ge 1\}", r"\{x : x>2\}", r"\{x : y>1\}", r"(-\infty,1)"]),
        (r"\{x \mid x > 1\}", [r"\{x \mid x < 1\}"]),
        ("|AB|=1", ["2", "|AC|=1", "-1"]),
        ("[3]", ["4", r"\{4\}", "[3,3]"]),
        ("[4, 1, 2, 0]", ["0,1,2,4", "4,1,2", r"\{4,1,2,0\}", "4120"]),
        (r"\vec{a}", ["a", r"\vec{b}"]),
        (r"\bar{x}", ["x", r"\hat{x}"]),
        (r"\dot{x}", ["x", r"\ddot{x}"]),
        (r"\overline{z}", ["z"]),
        (r"A^c", ["A"]),
        (r"x_1", ["x_2", "x"]),
        (r"A \cup B", [r"A \cap B", "A,B"]),
        (r"A \subset B", [r"B \subset A"]),
        (r"\forall x", [r"\exists x"]),
        (r"\max", [r"\min"]),
    ],
    "bound letters": [
        ("55", [r"\sum_{k=1}^{9} k", r"\sum_{k=1}^{10} j", r"\sum_{k=1}^{n} k", "k", r"\sum_{k=1}^{10}"]),
        (r"\frac12", [r"\int_0^1 x^2\,dx", r"\int x\,dx", r"\int_0^1 y\,dx", r"\int_0^2 x\,dx"]),
        ("1", [r"\lim_{x\to 0}\frac{x}{\sin 2x}", r"\lim_{x\to\infty} x", r"\lim_{x \to 0} y"]),
        ("10", [r"{5 \choose 3}+1", r"\binom{6}{2}"]),
        (r"\begin{pmatrix}4\\6\end{pmatrix}", [
            r"\begin{pmatrix}1\\2\end{pmatrix}+\begin{pmatrix}3\\5\end{pmatrix}", r"3\begin{pmatrix}2\\3\end{pmatrix}", r"\begin{pmatrix}4&6\end{pmatrix}",
            r"\begin{pmatrix}4\\6\end{pmatrix}^T", r"-\begin{pmatrix}4\\6\end{pmatrix}", r"\begin{pmatrix}4\\6\end{pmatrix}+1", r"\begin{pmatrix}4\\6.0000001\end{pmatrix}+\begin{pmatrix}0\\0\end{pmatrix}",
        ]),
    ],
    "letters": [
        ("B", ["(B), (C)", "(B) or (C)", "B. C.", "(B) is wrong, the answer is (C)", "B: C", "B, C", "B and C", "BC", "B/C", "B-C", "(B)(C)", "not B", r"\neg B", "B or C", "C (not B)", "B wrong"]),
        (r"\text{(C)}", ["(B), (C)", r"\text{(B) or (C)}", "(C) or (B)", r"\text{C, D}"]),
    ],
}  # fmt: skip

QUESTION = r"""Where is a revolving door?

Options:
A. a bank
B. library
C. department store
D. $\frac{1}{2}$ of all malls, wherever they are
E. New York"""
# Answers that name option B, and that do not, with the options known (QUESTION) and unknown.
CHOICE_B = [
    "B", "(b)", '"B"', "'B'", "**B**", "`B`", "B - library", "B – library", "B library", r"\Large B", r"\boldsymbol{B}", r"\text{B}\ \text{library}", r"\textbf{(B)} library",
    r"\textcolor{blue}{B}", r"\underline{B}", "Answer: B", r"\text{The answer is } B", "The correct option is B", "**B. library**", r"\text{B. library}", "(B): library", "(B) - library",
    r"\boxed{B}", r"\mathbf{B}", r"\text{Option B}", "B)", "B is the answer", r"\text{Answer: (B)}", "B: library", r"\color{red}{\text{B}}",
]  # fmt: skip
CHOICE_NOT_B = [
    "(B), (C)", "(B) or (C)", "B. C.", "(B) is wrong, the answer is (C)", "B: C", "B, C", "B and C", "B/C", "BC", "B C", "B - C", "(B)(C)", "(B) (C)", "B or C", "B. or C.", "Not B",
    "B is wrong", "B. is incorrect", "B: not correct", "B. bank or C. store", "B. No, C", "(B) and (C)", "B (or C)", "B, not C", "B? C", r"\text{(B)},\ \text{(C)}", "B; C", "B & C", "B+C", "B > C",
    "either B or C", "B or D", "A", "C. library", "(C) library", "B, maybe C", "B -> C", r"B \text{ or } C", r"\textbf{(B)} \text{ and } \textbf{(C)}", "B: the answer is C", "all but B",
]  # fmt: skip
