//! `when`: whether a step runs at all. An expression of references, JSON literals, parentheses,
//! `!`, `==`, `!=`, `&&`, `||`, which bind in that order; operators of one kind from the left.
//!
//! `false` and null skip the step, everything else runs it, also 0 and "". What a reference
//! does not find is null. Numbers are equal by value: `1 == 1.0`. Text of any length is parsed:
//! nesting has a limit, and a chain of one operator is one node, so no text is too deep to walk.

use std::borrow::Cow;

use serde_json::{Number, Value};

use super::reference::{Malformed, Reference, Values, look_up, parse_reference, unterminated};

/// Of parentheses and `!`.
const LEVELS_MAX: usize = 64;
/// Characters of a word that a message shows.
const WORD_MAX: usize = 40;
const A_VALUE: &str = "a value (a reference, JSON, ( or !)";

#[derive(Debug, Clone, PartialEq)]
pub struct Condition(Expression);

impl Condition {
    /// The message of an error has the column, counted in characters from 1.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut parser = Parser { rest: text, levels: 0 };
        let parsed = parser.chain(&LOOSEST_FIRST).and_then(|expression| parser.end().map(|()| expression));
        parsed.map(Self).map_err(|message| {
            let column = text[..text.len() - parser.rest.len()].chars().count() + 1;
            Malformed { message: format!("column {column}: {message}") }
        })
    }

    /// As written, from left to right, each as often as it occurs.
    pub fn references(&self) -> Vec<Reference> {
        let mut found = Vec::new();
        self.0.collect(&mut found);
        found
    }

    pub fn holds(&self, values: &dyn Values) -> bool {
        is_true(&self.0.value(values))
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Expression {
    Literal(Value),
    Reference(Reference),
    Not(Box<Expression>),
    /// Two or more.
    Chain(Operator, Vec<Expression>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operator {
    Equal,
    NotEqual,
    And,
    Or,
}

const LOOSEST_FIRST: [(&str, Operator); 4] =
    [("||", Operator::Or), ("&&", Operator::And), ("!=", Operator::NotEqual), ("==", Operator::Equal)];

impl Expression {
    fn collect(&self, found: &mut Vec<Reference>) {
        match self {
            Self::Literal(_) => {}
            Self::Reference(reference) => found.push(reference.clone()),
            Self::Not(inner) => inner.collect(found),
            Self::Chain(_, parts) => parts.iter().for_each(|part| part.collect(found)),
        }
    }

    fn value<'a>(&'a self, values: &'a dyn Values) -> Cow<'a, Value> {
        match self {
            Self::Literal(value) => Cow::Borrowed(value),
            Self::Reference(reference) => look_up(reference, values).unwrap_or(Cow::Owned(Value::Null)),
            Self::Not(inner) => boolean(!is_true(&inner.value(values))),
            Self::Chain(operator, parts) => {
                let mut parts = parts.iter().map(|part| part.value(values));
                match operator {
                    Operator::And => boolean(parts.all(|part| is_true(&part))),
                    Operator::Or => boolean(parts.any(|part| is_true(&part))),
                    Operator::Equal => parts.reduce(|left, right| boolean(equal(&left, &right))).unwrap_or_default(),
                    Operator::NotEqual => {
                        parts.reduce(|left, right| boolean(!equal(&left, &right))).unwrap_or_default()
                    }
                }
            }
        }
    }
}

fn boolean<'a>(value: bool) -> Cow<'a, Value> {
    Cow::Owned(Value::Bool(value))
}

fn is_true(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
}

/// As JSON means it: the order of fields says nothing, and neither does how a number is written.
fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => same_number(left, right),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| equal(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            let same = |(key, left)| right.get(key).is_some_and(|right| equal(left, right));
            left.len() == right.len() && left.iter().all(same)
        }
        _ => left == right,
    }
}

/// Exact, so an integer of 64 bits is never rounded to meet a float.
fn same_number(left: &Number, right: &Number) -> bool {
    match (integer(left), integer(right)) {
        (None, None) => left.as_f64() == right.as_f64(),
        (left, right) => left == right,
    }
}

/// `None` for a fraction, and for a float so large that it is nothing but a float.
fn integer(number: &Number) -> Option<i128> {
    const LARGE: f64 = 1e30;
    if let Some(integer) = number.as_i128() {
        return Some(integer);
    }
    let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < LARGE)?;
    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction and is far below 2^127")]
    Some(float as i128)
}

/// Descends by the strength of binding. Where it fails, `rest` begins at the culprit.
struct Parser<'a> {
    rest: &'a str,
    levels: usize,
}

impl Parser<'_> {
    fn chain(&mut self, operators: &[(&str, Operator)]) -> Result<Expression, String> {
        let Some(((symbol, operator), tighter)) = operators.split_first() else { return self.unary() };
        let first = self.chain(tighter)?;
        if !self.take(symbol) {
            return Ok(first);
        }
        let mut parts = vec![first];
        loop {
            parts.push(self.chain(tighter)?);
            if !self.take(symbol) {
                return Ok(Expression::Chain(*operator, parts));
            }
        }
    }

    fn unary(&mut self) -> Result<Expression, String> {
        if self.take("!") {
            let inner = self.nested(Self::unary)?;
            return Ok(Expression::Not(Box::new(inner)));
        }
        if self.take("(") {
            let inner = self.nested(|parser| parser.chain(&LOOSEST_FIRST))?;
            return if self.take(")") { Ok(inner) } else { Err(self.expected("an operator or )")) };
        }
        self.rest = self.rest.trim_start();
        match self.rest.chars().next() {
            Some('$') if self.rest.starts_with("${") => self.reference(),
            Some('"' | '[' | '{') => self.json(),
            Some('-' | '0'..='9') => self.plain(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')),
            Some('t' | 'f' | 'n') => self.plain(|c| c.is_alphanumeric() || matches!(c, '_' | '.')),
            _ => Err(self.expected(A_VALUE)),
        }
    }

    fn reference(&mut self) -> Result<Expression, String> {
        let opened = &self.rest["${".len()..];
        let (inner, rest) = opened.split_once('}').ok_or_else(|| unterminated(opened).message)?;
        let reference = parse_reference(inner).map_err(|malformed| malformed.message)?;
        self.rest = rest;
        Ok(Expression::Reference(reference))
    }

    /// A number, or one of the three words.
    fn plain(&mut self, belongs: fn(char) -> bool) -> Result<Expression, String> {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        let value = serde_json::from_str(text).map_err(|_| self.expected(A_VALUE))?;
        self.rest = rest;
        Ok(Expression::Literal(value))
    }

    /// What says itself where it ends.
    fn json(&mut self) -> Result<Expression, String> {
        let mut found = serde_json::Deserializer::from_str(self.rest).into_iter();
        let value = found.next().and_then(Result::ok).ok_or("a string, array or object that is not JSON")?;
        let (text, rest) = self.rest.split_at(found.byte_offset());
        if text.contains("${") {
            // Taken as text it would never equal what it seems to mean.
            return Err("a reference stands without quotes, outside of JSON (as text, write \\u0024{)".to_owned());
        }
        self.rest = rest;
        Ok(Expression::Literal(value))
    }

    fn nested(&mut self, parse: impl FnOnce(&mut Self) -> Result<Expression, String>) -> Result<Expression, String> {
        if self.levels == LEVELS_MAX {
            return Err(format!("more than {LEVELS_MAX} levels of parentheses and !"));
        }
        self.levels += 1;
        let parsed = parse(self);
        self.levels -= 1;
        parsed
    }

    fn take(&mut self, symbol: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(symbol);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn end(&mut self) -> Result<(), String> {
        if self.rest.trim_start().is_empty() { Ok(()) } else { Err(self.expected("an operator or the end")) }
    }

    fn expected(&mut self, what: &str) -> String {
        self.rest = self.rest.trim_start();
        let word = self.rest.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '.')).unwrap_or(self.rest.len());
        let found: String = match &self.rest[..word] {
            "" => self.rest.chars().take(1).collect(),
            word => word.chars().take(WORD_MAX).collect(),
        };
        let found = if found.is_empty() { "the end" } else { &found };
        format!("expected {what}, found {found}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{
        super::reference::tests::{Known, any_json, known},
        *,
    };

    fn parsed(text: &str) -> Condition {
        Condition::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn holds(text: &str) -> bool {
        parsed(text).holds(&known())
    }

    fn refused(text: &str) -> String {
        match Condition::parse(text) {
            Err(error) => error.message,
            Ok(condition) => panic!("{text}: {condition:?}"),
        }
    }

    #[test]
    fn false_and_null_skip_and_all_else_runs() {
        for text in ["false", "null", " false\n", "(null)", "${output.none}", "${output.missing.part}", "${vars.no}"] {
            assert!(!holds(text), "{text}");
        }
        for text in ["true", "0", "\"\"", "[]", "{}", "-1", "\"false\"", "${vars.empty}", "${output.id}"] {
            assert!(holds(text), "{text}");
        }
        assert!(!parsed("${output}").holds(&Known::default()));
    }

    #[test]
    fn what_is_missing_equals_null() {
        assert!(holds("${steps.none.output} == null && ${steps.build.output.none} == null && ${vars.no}==null"));
        assert!(holds("${steps.build.output.tags.7} != 1"));
        assert!(!holds("${vars.empty} == null"));
    }

    #[test]
    fn references_are_compared_by_value() {
        assert!(holds(r#"${vars.env} == "prod" && ${steps.build.output.id} == 7"#));
        assert!(holds(r#"${output.tags} == ["x", {"y": "z"}]"#));
        assert!(holds("${steps.build.output} == ${output}"));
        assert!(holds("${steps.ask.output.body.output.0} == \"hello\""));
        assert!(!holds(r#"${output.id} == "7""#));
        assert!(!holds("${output.ok} == 1"));
    }

    #[test]
    fn numbers_are_equal_by_value_and_never_rounded() {
        for text in [
            "1 == 1.0",
            "-0 == 0",
            "1e2 == 100",
            "0.5 == 5e-1",
            "[1, {\"a\": 2.0}] == [1.0, {\"a\": 2}]",
            "18446744073709551615 != 18446744073709551616.0",
            "9007199254740993 != 9007199254740992.0",
            "1e300 == 1.0e300",
            "1e300 != 1e301",
            "1e30 != 9223372036854775807",
            "1 != 1.5",
            "{\"a\": 1, \"b\": 2} == {\"b\": 2, \"a\": 1}",
            "{\"a\": 1} != {\"a\": 1, \"b\": null}",
            "{\"a\": null} != {\"b\": null}",
            "[1] != [1, 1]",
        ] {
            assert!(holds(text), "{text}");
        }
    }

    #[test]
    fn operators_bind_in_their_order() {
        for (text, meant) in [
            ("!false == true", "(!false) == true"),
            ("!1 == 1", "(!1) == 1"),
            ("1 != 2 == 2", "1 != (2 == 2)"),
            ("1 == 1 != true", "(1 == 1) != true"),
            ("false != true && false", "(false != true) && false"),
            ("true || true && false", "true || (true && false)"),
            ("!false || true", "(!false) || true"),
            ("2 == 2 == 2", "(2 == 2) == 2"),
            ("2 != 3 != 4", "(2 != 3) != 4"),
            ("!!5 == true", "(!(!5)) == true"),
        ] {
            assert_eq!(parsed(text), unparenthesised(meant), "{text}");
            assert_eq!(holds(text), holds(meant), "{text}");
        }
        assert!(!holds("2 == 2 == 2") && holds("1 != 2 == 2") && holds("true || true && false"));
        assert!(!holds("(true || true) && false") && holds("!!5 == true"));
    }

    /// `(a == b) == c` is the chain `a == b == c`, which parentheses keep apart.
    fn unparenthesised(text: &str) -> Condition {
        let Condition(expression) = parsed(text);
        let Expression::Chain(operator, mut parts) = expression else { return Condition(expression) };
        if let Expression::Chain(inner, first) = &parts[0]
            && *inner == operator
        {
            parts.splice(0..1, first.clone());
        }
        Condition(Expression::Chain(operator, parts))
    }

    #[test]
    fn and_and_or_give_booleans() {
        assert!(holds("(1 && 2) == true && (null || 0) == true && (null || false) == false && !null == true"));
    }

    #[test]
    fn space_is_free() {
        assert_eq!(
            parsed("!${output.a}==1&&(true||[1]!={})"),
            parsed(" ! ${output.a} == 1\n\t&& ( true || [ 1 ]!= { } ) ")
        );
        assert_eq!(parsed("\"a\"==\"\\u0061\""), parsed("\"a\" == \"a\""));
    }

    #[test]
    fn an_error_says_where() {
        let value = "expected a value (a reference, JSON, ( or !)";
        let no_json = "a string, array or object that is not JSON";
        for (text, message) in [
            ("", format!("column 1: {value}, found the end")),
            ("  ", format!("column 3: {value}, found the end")),
            ("1 ==", format!("column 5: {value}, found the end")),
            ("1 = 1", "column 3: expected an operator or the end, found =".into()),
            ("1 1", "column 3: expected an operator or the end, found 1".into()),
            ("\"ä\" & 1", "column 5: expected an operator or the end, found &".into()),
            ("(1 == 1", "column 8: expected an operator or ), found the end".into()),
            ("(1))", "column 4: expected an operator or the end, found )".into()),
            ("()", format!("column 2: {value}, found )")),
            ("!", format!("column 2: {value}, found the end")),
            ("&& 1", format!("column 1: {value}, found &")),
            ("vars.a == 1", format!("column 1: {value}, found vars.a")),
            ("1 == truely", format!("column 6: {value}, found truely")),
            ("True", format!("column 1: {value}, found True")),
            ("'a'", format!("column 1: {value}, found '")),
            ("01", format!("column 1: {value}, found 01")),
            ("1e999", format!("column 1: {value}, found 1e999")),
            ("-", format!("column 1: {value}, found -")),
            ("$${x}", format!("column 1: {value}, found $")),
            ("1 == \"a", format!("column 6: {no_json}")),
            ("[1,]", format!("column 1: {no_json}")),
            ("1 || ${vars.a", "column 6: ${vars.a has no closing }".into()),
            (
                "1 || ${a}",
                "column 6: ${a} is none of ${vars.NAME}, ${steps.STEP.output.PATH} and ${output.PATH}".into(),
            ),
        ] {
            assert_eq!(refused(text), message, "{text}");
        }
    }

    #[test]
    fn a_reference_in_quotes_is_refused() {
        for text in [r#""${vars.env}" == "prod""#, r#"["${output}"]"#, r#""$${x}""#] {
            assert!(refused(text).starts_with("column 1: a reference stands without quotes"), "{text}");
        }
        let values = Known { output: Some(json!("${x}")), ..Known::default() };
        assert!(parsed(r#"${output} == "\u0024{x}""#).holds(&values));
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |open: &str, close: &str, n| format!("{}true{}", open.repeat(n), close.repeat(n));
        for (open, close) in [("(", ")"), ("!", ""), ("(1||1&&1!=1==", ")")] {
            assert!(Condition::parse(&nested(open, close, 64)).is_ok(), "{open}");
            let message = refused(&nested(open, close, 65));
            assert!(message.ends_with("more than 64 levels of parentheses and !"), "{open}: {message}");
        }
        assert!(holds(&nested("!(", ")", 32)));
        assert!(Condition::parse(&nested("!(", ")", 33)).is_err());
        assert!(holds(&vec!["(true)"; 100].join("&&")), "side by side is not nested");
        for open in ["(", "!", "[", "!(", "( ", "{\"a\":", "(1||", "((1)||"] {
            assert!(Condition::parse(&open.repeat((1 << 20) / open.len())).is_err(), "{open}");
        }
    }

    #[test]
    fn a_chain_may_be_long() {
        for operator in ["||", "&&", "==", "!="] {
            let text = vec!["1"; 300_000].join(operator);
            let condition = parsed(&text);
            assert_eq!(condition.clone(), condition);
            assert_eq!(condition.holds(&known()), operator != "==", "{operator}");
        }
    }

    #[test]
    fn references_come_in_their_order() {
        let condition = parsed("${vars.b} == 1 && !(${steps.x.output} || ${output.a.0}) || [1] == ${vars.b}");
        let found: Vec<String> = condition.references().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["vars.b", "steps.x.output", "output.a.0", "vars.b"]);
        assert!(parsed("true").references().is_empty());
    }

    /// An expression as a person means it, with what it is worth.
    #[derive(Debug, Clone)]
    enum Meant {
        Literal(Value),
        Not(Box<Meant>),
        Two(usize, Box<Meant>, Box<Meant>),
    }

    impl Meant {
        fn any() -> impl Strategy<Value = Self> {
            let literal = prop_oneof![
                Just(json!(null)),
                any::<bool>().prop_map(Value::from),
                (0..3).prop_map(Value::from),
                any_json().prop_filter("is text", |value| !value.to_string().contains("${")),
            ];
            literal.prop_map(Self::Literal).prop_recursive(5, 32, 2, |part| {
                prop_oneof![
                    part.clone().prop_map(|inner| Self::Not(Box::new(inner))),
                    (0..4_usize, part.clone(), part).prop_map(|(n, left, right)| Self::Two(
                        n,
                        left.into(),
                        right.into()
                    )),
                ]
            })
        }

        fn value(&self) -> Value {
            match self {
                Self::Literal(value) => value.clone(),
                Self::Not(inner) => json!(!is_true(&inner.value())),
                Self::Two(0, left, right) => json!(is_true(&left.value()) || is_true(&right.value())),
                Self::Two(1, left, right) => json!(is_true(&left.value()) && is_true(&right.value())),
                Self::Two(2, left, right) => json!(!equal(&left.value(), &right.value())),
                Self::Two(_, left, right) => json!(equal(&left.value(), &right.value())),
            }
        }

        /// With parentheses only where binding needs them; `strength` is what is around it.
        fn text(&self, strength: usize) -> String {
            let (text, own) = match self {
                Self::Literal(value) => return value.to_string(),
                Self::Not(inner) => return format!("!{}", inner.text(4)),
                Self::Two(n, left, right) => {
                    (format!("{} {} {}", left.text(*n), LOOSEST_FIRST[*n].0, right.text(n + 1)), *n)
                }
            };
            if own < strength { format!("({text})") } else { text }
        }
    }

    proptest! {
        #[test]
        fn an_expression_is_worth_what_was_meant(meant in Meant::any()) {
            let text = meant.text(0);
            let condition = parsed(&text);
            let values = Known::default();
            prop_assert_eq!(&*condition.0.value(&values), &meant.value(), "{}", text);
            prop_assert_eq!(condition.holds(&values), is_true(&meant.value()));
        }

        #[test]
        fn a_value_equals_itself_alone(left in any_json(), right in any_json()) {
            let values = Known { output: Some(json!({"left": left, "right": right})), ..Known::default() };
            let same = parsed("${output.left} == ${output.left}").holds(&values);
            let equal = parsed("${output.left} == ${output.right}").holds(&values);
            prop_assert_ne!(equal, parsed("${output.left} != ${output.right}").holds(&values));
            prop_assert_eq!(equal, parsed("${output.right} == ${output.left}").holds(&values));
            prop_assert!(same && (equal || left != right));
        }

        #[test]
        fn an_integer_equals_a_float_of_its_value_alone(integer: i64, float in prop_oneof![any::<f64>(), -9e18..9e18]) {
            let close = integer as f64;
            prop_assert_eq!(equal(&json!(integer), &json!(close)), i128::from(integer) == format!("{close:.0}").parse().unwrap());
            prop_assert_eq!(equal(&json!(float), &json!(integer)), equal(&json!(integer), &json!(float)));
        }

        #[test]
        fn no_text_panics(
            text in "\\PC{0,30}|([!(){}\"$,:= 0-9.eE-]|\\[|\\]|&&|[|]{2}|==|!=|[$]\\{output\\}|true|null|ä){0,20}",
        ) {
            match Condition::parse(&text) {
                Ok(condition) => drop((condition.holds(&known()), condition.references())),
                Err(error) => {
                    let column = error.message.strip_prefix("column ").and_then(|rest| rest.split_once(':')).unwrap().0;
                    prop_assert!((1..=text.chars().count() + 1).contains(&column.parse().unwrap()), "{}", error);
                }
            }
        }
    }
}
