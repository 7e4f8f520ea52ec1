//! References in the strings of a step's config: `${vars.NAME}`, `${steps.STEP.output.PATH}`,
//! `${output.PATH}`; `$${` is a literal `${`. They are found, checked for form and replaced by
//! values here. Who may refer to whom is not known here, and values come from the caller.
//!
//! A string that is one whole reference takes the value's type. What is put in is bounded, in
//! bytes and in depth: values that hold values of earlier steps would else grow without end.

use std::{borrow::Cow, error::Error, fmt, iter};

use serde_json::{Map, Value};

/// All values put into one config, about; as much as the largest body that is taken.
const INSERTED_MAX: usize = 16 << 20;
/// What nests deeper than 127 is not read back from where it was stored; the rest is for what is around it.
const DEPTH_MAX: usize = 100;
/// A step's name is tried with so many endings: each costs a look at all the text before it.
const READINGS_MAX: usize = 16;
/// Characters of a path or a reference that a message shows. Also keeps many errors under one long key small.
const SHOWN_MAX: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    Var(String),
    /// Of a step's output, which an empty path means as a whole.
    Step {
        name: String,
        path: Vec<String>,
    },
    /// Of the output of the step that a compensation belongs to.
    Output {
        path: Vec<String>,
    },
}

/// As it is written, without `${` and `}`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match self {
            Self::Var(name) => return write!(f, "vars.{name}"),
            Self::Step { name, path } => {
                write!(f, "steps.{name}.output")?;
                path
            }
            Self::Output { path } => {
                f.write_str("output")?;
                path
            }
        };
        path.iter().try_for_each(|segment| write!(f, ".{segment}"))
    }
}

impl Reference {
    /// Read so that the step is one that `is_step` knows, where any reading does that.
    ///
    /// Both a step's name and a path may hold `.output`: [`parse_reference`] takes the longest
    /// name, and only one who knows the steps can tell that `${steps.ask.output.body.output}`
    /// means `body.output` of `ask`. The longest name that is known wins.
    pub fn settled(&self, is_step: impl Fn(&str) -> bool) -> Cow<'_, Self> {
        let known = |reading: &Self| matches!(reading, Self::Step { name, .. } if is_step(name));
        if known(self) {
            return Cow::Borrowed(self);
        }
        let mut shorter = iter::successors(self.shorter(), Self::shorter).take(READINGS_MAX);
        shorter.find(known).map_or(Cow::Borrowed(self), Cow::Owned)
    }

    /// The same text with a shorter name and a longer path.
    fn shorter(&self) -> Option<Self> {
        let Self::Step { name, path } = self else { return None };
        let (name, first) = split_step(name)?;
        let mut longer = segments(first)?;
        longer.push("output".to_owned());
        longer.extend_from_slice(path);
        Some(Self::Step { name: name.to_owned(), path: longer })
    }
}

/// Text that looks like a reference and is none; or a condition that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    pub message: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Malformed {}

/// What stands between `${` and `}`. No space is trimmed, as names may hold any.
pub fn parse_reference(inner: &str) -> Result<Reference, Malformed> {
    let parsed = if let Some(name) = inner.strip_prefix("vars.") {
        (!name.is_empty()).then(|| Reference::Var(name.to_owned()))
    } else if let Some(rest) = inner.strip_prefix("steps.") {
        split_step(rest).and_then(|(name, path)| Some(Reference::Step { name: name.to_owned(), path: segments(path)? }))
    } else if let Some(path) = inner.strip_prefix("output") {
        segments(path).map(|path| Reference::Output { path })
    } else {
        None
    };
    parsed.ok_or_else(|| Malformed {
        message: format!(
            "${{{}}} is none of ${{vars.NAME}}, ${{steps.STEP.output.PATH}} and ${{output.PATH}}",
            cut(inner)
        ),
    })
}

/// Every reference in every string of a value, keys of objects aside, with the path of the
/// string below `value`: `headers.X-Id`, `args[2]`, or nothing for `value` itself.
pub fn references(value: &Value) -> Vec<(String, Result<Reference, Malformed>)> {
    let mut found = Vec::new();
    collect(value, "", &mut found);
    found
}

/// Whether there is one, malformed or not; `$${` is none.
pub fn contains_reference(text: &str) -> bool {
    Pieces { rest: text }.any(|piece| matches!(piece, Piece::Reference(_)))
}

/// What references stand for.
pub trait Values {
    fn var(&self, name: &str) -> Option<&str>;
    /// The output of a step.
    fn step(&self, name: &str) -> Option<&Value>;
    /// The output of the step that is compensated.
    fn output(&self) -> Option<&Value>;
}

/// The value a reference stands for. A missing step, var or part of a path is `None`; null is a value.
pub fn look_up<'a>(reference: &Reference, values: &'a dyn Values) -> Option<Cow<'a, Value>> {
    let reference = reference.settled(|name| values.step(name).is_some());
    let found = match &*reference {
        Reference::Var(name) => return values.var(name).map(|text| Cow::Owned(text.into())),
        Reference::Step { name, path } => walk(values.step(name)?, path),
        Reference::Output { path } => walk(values.output()?, path),
    };
    found.map(Cow::Borrowed)
}

/// `value` with its references replaced, and `$${` turned into `${`. Keys of objects stay as they are.
pub fn resolve(value: &Value, values: &dyn Values) -> Result<Value, Unresolved> {
    Resolver { values, left: INSERTED_MAX }.value(value, "", 0).map_err(|(path, message)| Unresolved { path, message })
}

/// `value` for the compensation of a step whose output nobody knows: a string that is one whole reference to it
/// is null. Within a longer text it stays, and has no value: half of a URL is not one.
pub fn without_output(value: &Value) -> Value {
    match value {
        Value::String(text) => match whole(text) {
            Some(Ok(Reference::Output { .. })) => Value::Null,
            _ => value.clone(),
        },
        Value::Array(items) => items.iter().map(without_output).collect(),
        Value::Object(members) => {
            Value::Object(members.iter().map(|(name, member)| (name.clone(), without_output(member))).collect())
        }
        _ => value.clone(),
    }
}

/// Why a string has no value. It shows references, never values: they may be secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// Of the string, below the value that was to be resolved.
    pub path: String,
    pub message: String,
}

impl Unresolved {
    /// Seen from where the value itself is, such as `config`.
    #[must_use]
    pub fn below(self, root: &str) -> Self {
        Self { path: join(root, &self.path), ..self }
    }
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl Error for Unresolved {}

/// A path of [`references`], seen from `root`: `config` and `args[2]` are `config.args[2]`.
pub fn join(root: &str, path: &str) -> String {
    let dot = if root.is_empty() || path.is_empty() || path.starts_with('[') { "" } else { "." };
    format!("{root}{dot}{path}")
}

/// The name of a step and the text after `.output`, from what follows `steps.`. Names may hold
/// dots, and `.output` too: the name ends at the last `.output` with a dot or nothing behind it.
fn split_step(text: &str) -> Option<(&str, &str)> {
    let ends = text.rmatch_indices(".output").map(|(at, found)| (&text[..at], &text[at + found.len()..]));
    let mut split = ends.filter(|(name, path)| !name.is_empty() && (path.is_empty() || path.starts_with('.')));
    split.next()
}

/// `.a.0` into `a` and `0`; nothing into nothing. `None` for an empty segment, or none after text.
fn segments(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let segments = text.strip_prefix('.')?.split('.');
    segments.map(|segment| (!segment.is_empty()).then(|| segment.to_owned())).collect()
}

/// A string, piece by piece.
struct Pieces<'a> {
    rest: &'a str,
}

enum Piece<'a> {
    Text(&'a str),
    Reference(Result<Reference, Malformed>),
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        if let Some(rest) = self.rest.strip_prefix("$${") {
            self.rest = rest;
            return Some(Piece::Text("${"));
        }
        if let Some(opened) = self.rest.strip_prefix("${") {
            let (reference, rest) = match opened.split_once('}') {
                Some((inner, rest)) => (parse_reference(inner), rest),
                None => (Err(unterminated(opened)), ""),
            };
            self.rest = rest;
            return Some(Piece::Reference(reference.map_err(with_hint)));
        }
        let next = self.rest.find("${").unwrap_or(self.rest.len());
        let escaped = next < self.rest.len() && self.rest[..next].ends_with('$');
        let (text, rest) = self.rest.split_at(next - usize::from(escaped));
        self.rest = rest;
        Some(Piece::Text(text))
    }
}

/// `${` without a `}`; `opened` is what follows it.
pub(super) fn unterminated(opened: &str) -> Malformed {
    Malformed { message: format!("${{{} has no closing }}", cut(opened)) }
}

fn with_hint(malformed: Malformed) -> Malformed {
    Malformed { message: format!("{malformed}; $${{ is a literal ${{") }
}

fn collect(value: &Value, path: &str, found: &mut Vec<(String, Result<Reference, Malformed>)>) {
    match value {
        Value::String(text) => {
            found.extend(Pieces { rest: text }.filter_map(|piece| match piece {
                Piece::Reference(reference) => Some((path.to_owned(), reference)),
                Piece::Text(_) => None,
            }));
        }
        Value::Array(items) => (0..).zip(items).for_each(|(i, item)| collect(item, &of_item(path, i), found)),
        Value::Object(fields) => fields.iter().for_each(|(key, field)| collect(field, &of_field(path, key), found)),
        _ => {}
    }
}

struct Resolver<'a> {
    values: &'a dyn Values,
    /// Bytes that may still be put in.
    left: usize,
}

impl<'a> Resolver<'a> {
    /// The error is the path of the string and what is wrong with it.
    fn value(&mut self, value: &Value, path: &str, depth: usize) -> Result<Value, (String, String)> {
        match value {
            Value::String(text) => self.string(text, depth).map_err(|message| (path.to_owned(), message)),
            Value::Array(items) => {
                let items = (0..).zip(items).map(|(i, item)| self.value(item, &of_item(path, i), depth + 1));
                Ok(Value::Array(items.collect::<Result<_, _>>()?))
            }
            Value::Object(fields) => {
                let mut resolved = Map::with_capacity(fields.len());
                for (key, field) in fields {
                    resolved.insert(key.clone(), self.value(field, &of_field(path, key), depth + 1)?);
                }
                Ok(Value::Object(resolved))
            }
            scalar => Ok(scalar.clone()),
        }
    }

    fn string(&mut self, text: &str, depth: usize) -> Result<Value, String> {
        if let Some(reference) = whole(text) {
            let reference = reference.map_err(|malformed| malformed.message)?;
            let value = self.find(&reference)?;
            return self.keep(&reference, &value, depth);
        }
        let mut resolved = String::new();
        for piece in (Pieces { rest: text }) {
            match piece {
                Piece::Text(text) => resolved.push_str(text),
                Piece::Reference(reference) => {
                    let reference = reference.map_err(|malformed| malformed.message)?;
                    let value = self.find(&reference)?;
                    resolved.push_str(&self.text(&reference, &value)?);
                }
            }
        }
        Ok(Value::String(resolved))
    }

    fn find(&self, reference: &Reference) -> Result<Cow<'a, Value>, String> {
        look_up(reference, self.values).ok_or_else(|| format!("{} has no value", shown(reference)))
    }

    /// A value as it is.
    fn keep(&mut self, reference: &Reference, value: &Value, depth: usize) -> Result<Value, String> {
        let (bytes, levels) = measure(value);
        if levels > 0 && depth + levels > DEPTH_MAX {
            return Err(format!("{} would nest deeper than {DEPTH_MAX} levels", shown(reference)));
        }
        self.spend(reference, bytes)?;
        Ok(value.clone())
    }

    /// A value within a text.
    fn text<'v>(&mut self, reference: &Reference, value: &'v Value) -> Result<Cow<'v, str>, String> {
        let text = match value {
            // "null" or nothing at all: either would be a surprise in the middle of an address.
            Value::Null => return Err(format!("{} is null, which has no text", shown(reference))),
            Value::String(text) => Cow::Borrowed(text.as_str()),
            value => Cow::Owned(value.to_string()),
        };
        self.spend(reference, text.len())?;
        Ok(text)
    }

    fn spend(&mut self, reference: &Reference, bytes: usize) -> Result<(), String> {
        let left = self.left.checked_sub(bytes);
        self.left =
            left.ok_or_else(|| format!("{} is too large: 16 MiB of values are put in at most", shown(reference)))?;
        Ok(())
    }
}

/// The reference that is all there is of a string.
fn whole(text: &str) -> Option<Result<Reference, Malformed>> {
    let mut pieces = Pieces { rest: text };
    match (pieces.next(), pieces.next()) {
        (Some(Piece::Reference(reference)), None) => Some(reference),
        _ => None,
    }
}

fn walk<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, segment| match value {
        Value::Object(fields) => fields.get(segment),
        Value::Array(items) => items.get(index(segment)?),
        _ => None,
    })
}

/// Digits as a number is written: an element has one name.
fn index(segment: &str) -> Option<usize> {
    let canonical = segment == "0" || !segment.starts_with(['0', '+']);
    segment.parse().ok().filter(|_| canonical)
}

/// Bytes in memory, about, and how deep a value nests: 0 for one that holds no other.
fn measure(value: &Value) -> (usize, usize) {
    /// So that many small values count for the room they take.
    const EACH: usize = 32;
    let within = |parts: &mut dyn Iterator<Item = (usize, &Value)>| {
        parts.fold((EACH, 1), |(bytes, levels), (key, part)| {
            let (more, deeper) = measure(part);
            (bytes + key + more, levels.max(deeper + 1))
        })
    };
    match value {
        Value::String(text) => (EACH + text.len(), 0),
        Value::Array(items) => within(&mut items.iter().map(|item| (0, item))),
        Value::Object(fields) => within(&mut fields.iter().map(|(key, field)| (key.len(), field))),
        _ => (EACH, 0),
    }
}

fn of_field(path: &str, key: &str) -> String {
    let dot = if path.is_empty() { "" } else { "." };
    cut(&format!("{path}{dot}{key}"))
}

fn of_item(path: &str, index: usize) -> String {
    cut(&format!("{path}[{index}]"))
}

fn shown(reference: &Reference) -> String {
    format!("${{{}}}", cut(&reference.to_string()))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Values to refer to.
    #[derive(Default)]
    pub struct Known {
        pub vars: HashMap<String, String>,
        pub steps: HashMap<String, Value>,
        pub output: Option<Value>,
    }

    impl Values for Known {
        fn var(&self, name: &str) -> Option<&str> {
            self.vars.get(name).map(String::as_str)
        }

        fn step(&self, name: &str) -> Option<&Value> {
            self.steps.get(name)
        }

        fn output(&self) -> Option<&Value> {
            self.output.as_ref()
        }
    }

    pub fn known() -> Known {
        let vars = [("env", "prod"), ("a.b", "dotted"), ("empty", ""), ("raw", "${vars.env} $${x}")];
        let output = json!({"id": 7, "ratio": 1.5, "ok": true, "none": null, "tags": ["x", {"y": "z"}], "0": "zero"});
        let steps = [
            ("build", output.clone()),
            ("build-1.2", json!({"id": 12})),
            ("a.output.b", json!("longest")),
            ("ask", json!({"body": {"output": ["hello", {"output": "twice"}]}})),
        ];
        Known {
            vars: vars.map(|(name, text)| (name.to_owned(), text.to_owned())).into(),
            steps: steps.map(|(name, output)| (name.to_owned(), output)).into(),
            output: Some(output),
        }
    }

    /// Any JSON, with text that often looks like a reference.
    pub fn any_json() -> impl Strategy<Value = Value> {
        let text = "\\PC{0,8}|[$]{0,3}[{](vars|steps|output)?[.a-z0-9]{0,6}[}]?";
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e9..1e9_f64).prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        scalar.prop_recursive(4, 24, 4, |part| {
            prop_oneof![
                prop::collection::vec(part.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-z0-9.$\\{\\}]{0,4}", part), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    fn parsed(inner: &str) -> Reference {
        parse_reference(inner).unwrap_or_else(|error| panic!("{inner}: {error}"))
    }

    fn step(name: &str, path: &[&str]) -> Reference {
        Reference::Step { name: name.to_owned(), path: path.iter().map(ToString::to_string).collect() }
    }

    fn resolved(text: &str) -> Value {
        resolve(&json!(text), &known()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(value: Value) -> String {
        resolve(&value, &known()).expect_err("nothing to resolve to").to_string()
    }

    #[test]
    fn a_reference_names_a_var_an_output_or_a_part_of_it() {
        assert_eq!(parsed("vars.env"), Reference::Var("env".into()));
        assert_eq!(parsed("vars.a.b"), Reference::Var("a.b".into()));
        assert_eq!(parsed("output"), Reference::Output { path: vec![] });
        assert_eq!(parsed("output.a.0"), Reference::Output { path: vec!["a".into(), "0".into()] });
        assert_eq!(parsed("steps.build.output"), step("build", &[]));
        assert_eq!(parsed("steps.build.output.a-b.0.c d"), step("build", &["a-b", "0", "c d"]));
    }

    #[test]
    fn a_steps_name_may_hold_anything_and_is_the_longest_there_is() {
        assert_eq!(parsed("steps.build-1.2.output.id"), step("build-1.2", &["id"]));
        assert_eq!(parsed("steps.ä { $ .output"), step("ä { $ ", &[]));
        assert_eq!(parsed("steps.a.outputs.output.x"), step("a.outputs", &["x"]));
        assert_eq!(parsed("steps.a.output.b.output.c"), step("a.output.b", &["c"]));
        assert_eq!(parsed("steps.a.output.outputs.b"), step("a", &["outputs", "b"]));
        assert_eq!(parsed("steps.output.output"), step("output", &[]));
        assert_eq!(parsed("steps..output.output"), step(".output", &[]));
    }

    #[test]
    fn a_name_settles_on_a_step_that_there_is() {
        let reference = parsed("steps.ask.output.body.output.0");
        assert_eq!(*reference.settled(|name| name == "ask"), step("ask", &["body", "output", "0"]));
        assert_eq!(*reference.settled(|_| true), step("ask.output.body", &["0"]));
        assert_eq!(*reference.settled(|_| false), reference);
        assert_eq!(*parsed("steps.a.output.output").settled(|name| name == "a"), step("a", &["output"]));
        assert_eq!(*parsed("vars.a.output.b").settled(|_| true), Reference::Var("a.output.b".into()));

        assert_eq!(resolved("${steps.ask.output.body.output.0}"), "hello");
        assert_eq!(resolved("${steps.ask.output.body.output.1.output}"), "twice");
        assert_eq!(resolved("${steps.a.output.b.output}"), "longest");
        let many = format!("steps.a{}", ".output".repeat(100_000));
        assert!(look_up(&parsed(&many), &known()).is_none());
    }

    #[test]
    fn anything_else_is_malformed() {
        for inner in [
            "",
            "foo",
            " vars.x",
            "vars",
            "vars.",
            "VARS.x",
            "steps",
            "steps.",
            "steps.a",
            "steps.output",
            "steps..output",
            "steps.a.outputs",
            "steps.a.output.",
            "steps.a.output..b",
            "steps.a.output.b.",
            "outputs",
            "output.",
            "output..a",
            "output[0]",
        ] {
            assert!(parse_reference(inner).is_err(), "{inner:?} {:?}", parse_reference(inner));
        }
        let message = parse_reference("foo").unwrap_err().message;
        assert_eq!(message, "${foo} is none of ${vars.NAME}, ${steps.STEP.output.PATH} and ${output.PATH}");
    }

    #[test]
    fn references_are_found_with_the_place_of_their_string() {
        let config = json!({
            "url": "https://${vars.host}/${steps.build.output.id}",
            "headers": {"X-Id": "${output.id}", "${vars.key}": "plain $${vars.x}"},
            "args": ["a", ["${vars.a", "${foo}"], 3, null, true],
        });
        let found: Vec<(String, Result<String, String>)> = references(&config)
            .into_iter()
            .map(|(path, found)| (path, found.map(|r| r.to_string()).map_err(|error| error.to_string())))
            .collect();
        let unknown = "${foo} is none of ${vars.NAME}, ${steps.STEP.output.PATH} and ${output.PATH}";
        let hint = "; $${ is a literal ${";
        assert_eq!(
            found,
            [
                ("url".into(), Ok("vars.host".into())),
                ("url".into(), Ok("steps.build.output.id".into())),
                ("headers.X-Id".into(), Ok("output.id".into())),
                ("args[1][0]".into(), Err(format!("${{vars.a has no closing }}{hint}"))),
                ("args[1][1]".into(), Err(format!("{unknown}{hint}"))),
            ]
        );
        assert_eq!(references(&json!("${output}")), [(String::new(), Ok(Reference::Output { path: vec![] }))]);
        assert_eq!(references(&json!(["${output}"]))[0].0, "[0]");
    }

    #[test]
    fn an_escaped_brace_is_no_reference() {
        for text in ["", "a", "$", "{", "$x", "$$", "$ {", "$${", "$${vars.x}", "a $${b} $", "$$${x}", "{}$"] {
            assert!(!contains_reference(text), "{text}");
        }
        for text in ["${vars.x}", "a${output}", "${", "${foo}", "$${ ${vars.x}", "$${${vars.x}"] {
            assert!(contains_reference(text), "{text}");
        }
    }

    #[test]
    fn one_whole_reference_keeps_the_type() {
        assert_eq!(resolved("${steps.build.output.id}"), json!(7));
        assert_eq!(resolved("${output.ok}"), json!(true));
        assert_eq!(resolved("${output.none}"), json!(null));
        assert_eq!(resolved("${output.tags}"), json!(["x", {"y": "z"}]));
        assert_eq!(resolved("${output.tags.1.y}"), json!("z"));
        assert_eq!(resolved("${output}"), known().output.unwrap());
        assert_eq!(resolved("${vars.env}"), json!("prod"));
    }

    #[test]
    fn within_a_text_values_become_text() {
        assert_eq!(resolved("https://${vars.env}.x/${output.id}?r=${output.ratio}"), "https://prod.x/7?r=1.5");
        assert_eq!(resolved("${output.ok}${output.tags}"), r#"true["x",{"y":"z"}]"#);
        assert_eq!(resolved("${vars.empty}${vars.empty}"), "");
        assert_eq!(resolved("${vars.empty}${output.id}"), "7");
        assert_eq!(resolved(" ${output.id}"), " 7");
        assert_eq!(resolved("$${x} $$ $ ${vars.a.b} $$${"), "${x} $$ $ dotted $${");
    }

    #[test]
    fn what_was_put_in_is_not_looked_at_again() {
        assert_eq!(resolved("${vars.raw}"), "${vars.env} $${x}");
        assert_eq!(resolved("<${vars.raw}>"), "<${vars.env} $${x}>");
        assert_eq!(resolved("$${${vars.env}}"), "${prod}");
    }

    #[test]
    fn a_missing_value_is_told_with_its_place() {
        assert_eq!(refused(json!({"url": "${steps.a.output.x}"})), "url: ${steps.a.output.x} has no value");
        assert_eq!(refused(json!({"args": ["", "-${vars.no}"]})), "args[1]: ${vars.no} has no value");
        assert_eq!(refused(json!("a ${output.none}")), "${output.none} is null, which has no text");
        assert_eq!(refused(json!("a ${b")), "${b has no closing }; $${ is a literal ${");
        for path in ["tags.2", "tags.00", "tags.+1", "tags.-1", "tags.x", "tags.0.x", "id.0", "none.x", "Id"] {
            assert_eq!(refused(json!(format!("${{output.{path}}}"))), format!("${{output.{path}}} has no value"));
        }
        assert_eq!(resolved("${output.0}"), "zero");

        let unresolved = |value| resolve(&value, &Known::default()).unwrap_err().below("config").to_string();
        assert_eq!(unresolved(json!({"url": "${output}"})), "config.url: ${output} has no value");
        assert_eq!(unresolved(json!(["${output}"])), "config[0]: ${output} has no value");
        assert_eq!(unresolved(json!("${output}")), "config: ${output} has no value");
        assert_eq!(join("", "url"), "url");
    }

    #[test]
    fn what_is_put_in_is_bounded() {
        let large = Known { output: Some(json!("x".repeat(INSERTED_MAX / 4))), ..Known::default() };
        assert!(resolve(&json!("-${output}${output}${output}"), &large).is_ok());
        assert!(resolve(&json!("-${output}${output}${output}${output}${output}"), &large).is_err());
        assert!(resolve(&json!(["${output}", "${output}", "${output}"]), &large).is_ok());
        let error = resolve(&json!(["${output}", "${output}", "${output}", "${output}"]), &large).unwrap_err();
        assert_eq!(error.to_string(), "[3]: ${output} is too large: 16 MiB of values are put in at most");

        let nested = |levels| (0..levels).fold(json!("${output}"), |value, _| json!([value]));
        let deep = Known { output: Some(nested(50)), ..Known::default() };
        assert!(resolve(&nested(50), &deep).is_ok());
        let error = resolve(&nested(51), &deep).unwrap_err();
        assert_eq!(error.message, "${output} would nest deeper than 100 levels");
        let flat = Known { output: Some(json!(1)), ..Known::default() };
        assert!(resolve(&nested(126), &flat).is_ok(), "what came deep without a reference stays");
    }

    #[test]
    fn long_text_is_cut_in_paths_and_messages() {
        let long = "ä".repeat(10_000);
        let config = json!({ long.clone(): [format!("${{{long}}}"), {"x": "${y"}] });
        for (path, found) in references(&config) {
            assert!(path.chars().count() == SHOWN_MAX + 1 && found.unwrap_err().message.len() < 1_000);
        }
        let error = resolve(&json!(format!("${{vars.{long}}}")), &known()).unwrap_err();
        assert!(error.message.ends_with("…} has no value") && error.message.len() < 1_000);
    }

    proptest! {
        #[test]
        fn what_is_parsed_is_displayed_as_it_was_written(
            inner in "(vars|steps|output|foo)?[.]?([a-z0-9{ -]|[.]output|[.]){0,8}",
        ) {
            if let Ok(reference) = parse_reference(&inner) {
                prop_assert_eq!(reference.to_string(), inner.as_str());
                let text = json!(format!("${{{inner}}}"));
                prop_assert_eq!(references(&text), [(String::new(), Ok(reference.clone()))]);
                let shortest = iter::successors(Some(reference), Reference::shorter).last().unwrap();
                prop_assert_eq!(shortest.to_string(), inner);
            }
        }

        #[test]
        fn any_text_survives_being_escaped(text in "\\PC{0,20}|[$\\{\\}a]{0,12}") {
            let escaped = text.replace("${", "$${");
            prop_assert!(!contains_reference(&escaped));
            prop_assert_eq!(resolve(&json!(escaped), &Known::default()), Ok(json!(text)));
        }

        #[test]
        fn a_value_comes_through_unchanged(value in any_json()) {
            let values = Known { output: Some(value.clone()), ..Known::default() };
            prop_assert_eq!(resolve(&json!("${output}"), &values).unwrap(), value.clone());
            prop_assert_eq!(resolve(&json!({"a": ["${output}"]}), &values).unwrap(), json!({"a": [value.clone()]}));
            let expected = match &value {
                Value::String(text) => Some(text.clone()),
                Value::Null => None,
                value => Some(value.to_string()),
            };
            let text = resolve(&json!("<${output}>"), &values).ok();
            prop_assert_eq!(text, expected.map(|expected| json!(format!("<{expected}>"))));
        }

        #[test]
        fn it_resolves_when_every_reference_has_a_value(value in any_json()) {
            let found = references(&value);
            let values = known();
            let has_value = |found: &Result<Reference, _>| {
                found.as_ref().is_ok_and(|reference| look_up(reference, &values).is_some_and(|value| !value.is_null()))
            };
            match resolve(&value, &values) {
                Ok(resolved) if found.is_empty() && !value.to_string().contains("${") => {
                    prop_assert_eq!(resolved, value);
                }
                Ok(_) => prop_assert!(found.iter().all(|(_, found)| found.is_ok())),
                Err(error) => {
                    let culprit = found.iter().find(|(_, found)| !has_value(found));
                    prop_assert_eq!(culprit.map(|(path, _)| path), Some(&error.path));
                }
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,30}|([$]|[{]|[}]|vars|steps|output|[.]|0|ä){0,12}") {
            let found = references(&json!(text));
            prop_assert_eq!(!found.is_empty(), contains_reference(&text));
            let _ = resolve(&json!(text), &known());
        }
    }
}
