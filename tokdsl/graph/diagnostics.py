"""Findings about types, sizes and static values (3xx)."""

from __future__ import annotations

from tokdsl.diagnostics import Diagnostic, Severity

ERROR = Severity.ERROR


class SizeMismatch(Diagnostic, code="TOK301", name="size-mismatch", severity=ERROR):
    """Two axes that must agree have different sizes.

    Axes are matched by name; the sizes of one name must be equal.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { x + weight(d: 3; init = zeros) * weight(d: 4; init = zeros) }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { x + weight(d; init = zeros) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class ClockMismatch(Diagnostic, code="TOK302", name="clock-mismatch", severity=ERROR):
    """Streams of different token resolutions are combined.

    A token axis belongs to a clock. Expand the coarser stream, or reduce the finer one, before
    they meet.

    ```tok error
    block f(x: [T, d], memory: [S, d]) -> [T, d] { a[i: T] = x[i] + rename(memory; S, i) }
    ```
    ```tok ok
    attention f(x: [T, d], memory: [S, d]) -> [T, d] {
      q = linear(x; heads: 1, head_dim: 8)
      k = linear(memory; heads: 1, head_dim: 8)
      linear(attend(q, k, k); d, over = [heads, head_dim])
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class UnknownAxis(Diagnostic, code="TOK303", name="unknown-axis", severity=ERROR):
    """An axis is named that the value does not have.

    Axes are the names in a value's type; a definition sees the names of its own signature.

    ```tok error
    fn f(x: [*, d]) -> [*] { sum(x; over = width) }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*] { sum(x; over = d) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class OperandKind(Diagnostic, code="TOK304", name="operand-kind", severity=ERROR):
    """A value of the wrong kind is given to an operation.

    Operations take tensors; a route or another record must be unpacked first.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { softmax("x"; over = d) }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { softmax(x; over = d) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class AxisTaken(Diagnostic, code="TOK305", name="axis-taken", severity=ERROR):
    """A value would have two axes of the same name.

    Rename one of them, or give the new axis a name of its own: `linear(x; out: d)`.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { linear(x; heads: 2, heads: 3) }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, heads, size] { linear(x; heads: 2, size: 3) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class UnknownArgument(Diagnostic, code="TOK306", name="unknown-argument", severity=ERROR):
    """A call gives an argument that the definition does not have.

    The message lists what the definition takes.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { softmax(x; axis = d) }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { softmax(x; over = d) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class MissingArgument(Diagnostic, code="TOK307", name="missing-argument", severity=ERROR):
    """A call lacks an argument that has no default.

    Static parameters without a default must be given at every call.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { softmax(x) }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { softmax(x; over = d) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class ArgumentType(Diagnostic, code="TOK308", name="argument-type", severity=ERROR):
    """An argument has the wrong static type.

    Integers are accepted where floats are expected, nothing else is converted.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { dropout(x; p = "half") }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { dropout(x; p = 0.5) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class NotDivisible(Diagnostic, code="TOK309", name="not-divisible", severity=ERROR):
    """A size must be divisible by another and is not.

    An obligation such as `heads divides d` was decided with the numbers of this instantiation.

    ```tok error
    fn f(x: [*, d]) -> [*, d] {
      z = split(linear(x; wide: 10); over = wide, parts: 4, each: 3)
      linear(z; d, over = [parts, each])
    }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] {
      z = split(linear(x; wide: 12); over = wide, parts: 4, each: 3)
      linear(z; d, over = [parts, each])
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class ResultMismatch(Diagnostic, code="TOK310", name="result-mismatch", severity=ERROR):
    """A definition's result does not have the type that its signature states.

    The last statement gives the result; its axes must be those after `->`.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { sum(x; over = d) }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*] { sum(x; over = d) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class StaticValue(Diagnostic, code="TOK311", name="static-value", severity=ERROR):
    """A static expression has no value.

    Static values are numbers, booleans, strings, lists and definitions known before the model runs.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { x * (1 / 0) }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { x * (1 / 2) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class NotCallable(Diagnostic, code="TOK312", name="not-callable", severity=ERROR):
    """Something that is not a definition is called.

    Only definitions, operations and parameters of a definition kind can be called.

    ```tok error
    fn f(x: [*, d]; n: int) -> [*, d] { n(x) }
    ```
    ```tok ok
    fn f(x: [*, d]; n: fn) -> [*, d] { n(x) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class RepeatCount(Diagnostic, code="TOK313", name="repeat-count", severity=ERROR):
    """A `repeat` count is not a whole number from 0 to 4096.

    Depth is static; it must be known and reasonable when the model is built.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { repeat 2.5 { it + 1 } }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { repeat 2 { it + 1 } }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class TypeNotKept(Diagnostic, code="TOK314", name="type-not-kept", severity=ERROR):
    """The body of a `repeat` or `residual` changes the type of the stream.

    What comes out is fed in again, or added to what came in; the types must be equal.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { residual { sum(it; over = d) } }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { residual { linear(it; d) } }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class ConditionNotStatic(Diagnostic, code="TOK315", name="condition-not-static", severity=ERROR):
    """The condition of an `if` is not a static bool.

    `if` chooses what is built. To choose per element use `where(condition, a, b)`.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { if x > 0 { x } else { 0 - x } }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { where(x > 0, x, 0 - x) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class NoValue(Diagnostic, code="TOK316", name="no-value", severity=ERROR):
    """An expression that must give a value gives none.

    A partial application needs its tensor operand, a body needs at least one statement.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { x + silu() }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { x + silu(x) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class ResultCount(Diagnostic, code="TOK317", name="result-count", severity=ERROR):
    """An equation names more or fewer results than there are.

    `a, b = f(x)` needs a definition or operation with two results.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { a, b = silu(x); a + b }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, k] { a, _ = topk(x; k: 2, over = d); a }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class OperandShape(Diagnostic, code="TOK318", name="operand-shape", severity=ERROR):
    """An operand does not have the axes that a signature states.

    `[*, d]` takes any leading axes; `[T, d]` takes exactly a token axis and one more.

    ```tok error
    fn g(x: [T, d]) -> [T, d] { x }
    fn f(x: [*, d]) -> [*] { g(sum(x; over = d)) }
    ```
    ```tok ok
    fn g(x: [T, d]) -> [T, d] { x }
    fn f(x: [T, d]) -> [T, d] { g(x) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class UnknownOverride(Diagnostic, code="TOK319", name="unknown-override", severity=ERROR):
    """A value is set for a parameter that the model does not have.

    `--set name=value` and `load(..., name=value)` set the parameters of the model's header.

    ```sh error
    tokdsl check model.tok --set dd=64
    ```
    ```sh ok
    tokdsl check model.tok --set d=64
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class ObjectiveNotScalar(Diagnostic, code="TOK320", name="objective-not-scalar", severity=ERROR):
    """The objective is not a single number.

    Reduce every axis: auxiliary values are stacked on the axis `collected`, losses reduce `batch`
    and tokens.

    ```tok error
    model m(d: int = 8) {
      stage text(ids: tokens[16]) { embed(d); unembed(16) }
      objective text
    }
    ```
    ```tok ok
    model m(d: int = 8) {
      stage text(ids: tokens[16]) { embed(d); unembed(16) }
      objective next_token(text, ids)
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class UnknownAux(Diagnostic, code="TOK321", name="unknown-aux", severity=ERROR):
    """The objective uses an auxiliary value that nothing computes.

    `aux name = ...` inside a definition makes it.

    ```tok error
    model m(d: int = 8) {
      stage text(ids: tokens[16]) { embed(d); unembed(16) }
      objective next_token(text, ids) + mean(aux.balance)
    }
    ```
    ```tok ok
    model m(d: int = 8) {
      stage text(ids: tokens[16]) { embed(d); aux size = mean(it * it); unembed(16) }
      objective next_token(text, ids) + mean(aux.size)
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class UnknownFact(Diagnostic, code="TOK322", name="unknown-fact", severity=ERROR):
    """A `require` names a fact that the compiler does not know.

    Facts are `causal`, `streaming`, and costs such as `params < 13B`.

    ```tok error
    model m(d: int = 8) {
      stage text(ids: tokens[16]) { embed(d); unembed(16) }
      require casual
    }
    ```
    ```tok ok
    model m(d: int = 8) {
      stage text(ids: tokens[16]) { embed(d); unembed(16) }
      require causal
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class SharedMismatch(Diagnostic, code="TOK323", name="shared-mismatch", severity=ERROR):
    """A shared definition is used on values of different types.

    One set of parameters needs one set of sizes.

    ```tok error
    fn f(x: [*, d]) -> [*, k] { shared g = linear(k: 4); g(g(x)) }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { shared g = linear(d); g(g(x)) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class RequirementBroken(Diagnostic, code="TOK325", name="requirement-broken", severity=ERROR):
    """A condition that a definition requires does not hold.

    `require` in a definition states what every use must meet.

    ```tok error
    fn f(x: [*, d]; n: int = 3) -> [*, d] { require n > 4; x + n }
    fn g(x: [*, d]) -> [*, d] { f(x) }
    ```
    ```tok ok
    fn f(x: [*, d]; n: int = 5) -> [*, d] { require n > 4; x + n }
    fn g(x: [*, d]) -> [*, d] { f(x) }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class VocabularyMismatch(Diagnostic, code="TOK326", name="vocabulary-mismatch", severity=ERROR):
    """Tokenizer, embedding and loss do not agree on the number of tokens.

    The table must have a row for every id, and the logits a class for every target.

    ```tok error
    model m(d: int = 8) {
      tokenizer = bytes()
      stage text(ids: tokens[100]) { embed(d); unembed(100) }
      objective next_token(text, ids)
    }
    ```
    ```tok ok
    model m(d: int = 8) {
      tokenizer = bytes()
      stage text(ids: tokens[256]) { embed(d); unembed(256) }
      objective next_token(text, ids)
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class SharedElsewhere(Diagnostic, code="TOK327", name="shared-elsewhere", severity=ERROR):
    """A shared definition is used in another body than the one that owns it.

    One set of parameters has one owner: the body with the `shared` line, and the `repeat`s in it.

    ```tok error
    fn g(x: [*, d]; f: fn) -> [*, d] { f(x) }
    fn h(x: [*, d]) -> [*, d] { shared f = linear(d); g(f(x); f = f) }
    ```
    ```tok ok
    fn h(x: [*, d]) -> [*, d] { shared f = linear(d); repeat 3 { f(it) } }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text


class NotAStage(Diagnostic, code="TOK324", name="not-a-stage", severity=ERROR):
    """A model member or statement is not allowed where it stands.

    Steps live in stages and definitions; a model holds stages, an objective and requirements.

    ```tok error
    model m(d: int = 8) {
      stage text(ids) { embed(d) }
    }
    ```
    ```tok ok
    model m(d: int = 8) {
      stage text(ids: tokens[16]) { embed(d); unembed(16) }
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Return expected, then found."""
        return self.text
