//! Runs a file's examples, and shows what came in place of what was expected.

use event::{
    Refusal, Subscription, Tenant,
    subscription::{Rules, View, parse_new},
    target::TargetRules,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    Dialects, FileFault, Rendered, compile,
    example::{EXAMPLE_TIME, Example, Expected},
    file::{Origin, Parameter},
    words::view_name,
};

/// Where an example's subscription goes where it does not say.
const TARGET: &str = "https://example.com/hooks";
/// How its subscription is named where it does not say.
const NAME: &str = "Example";

/// What became of a file's examples.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// The dialect's name.
    pub dialect: String,
    /// Its examples, in the order of the file.
    pub examples: Vec<ExampleReport>,
    /// Words that no example says.
    pub without_example: Vec<String>,
}

/// What became of one example.
#[derive(Debug, Clone, Serialize)]
pub struct ExampleReport {
    /// As the file names it.
    pub name: String,
    /// What was expected (`-`) and what came (`+`), line by line; empty where they are the same.
    pub diff: Vec<String>,
}

impl CheckReport {
    /// Whether every example came out as the file says.
    pub fn passed(&self) -> bool {
        self.examples.iter().all(|example| example.diff.is_empty())
    }
}

impl Dialects {
    /// Reads a file and runs its examples; the dialect takes the place of any of its name.
    pub fn check_file(file: &str, text: &str) -> Result<CheckReport, Vec<FileFault>> {
        let (dialect, _) = compile(Origin { file, text })?;
        let name = dialect.name.clone();
        let mut dialects = Self::builtin();
        dialects.by_name.insert(name.clone(), dialect.into());
        Ok(dialects.check(&name).unwrap_or_else(|| CheckReport {
            dialect: name,
            examples: Vec::new(),
            without_example: Vec::new(),
        }))
    }

    /// Runs the examples of a dialect; `None` where there is none of that name.
    pub fn check(&self, name: &str) -> Option<CheckReport> {
        let dialect = self.by_name.get(name)?;
        let reports = dialect.examples.iter().map(|example| ExampleReport {
            name: example.name.clone(),
            diff: self.differs(name, example),
        });
        let said = |word: &&crate::spoken::Word| {
            !dialect.examples.iter().any(|example| {
                let event = example.event.as_ref();
                event.is_some_and(|event| word.meaning_of(event).is_some())
            })
        };
        Some(CheckReport {
            dialect: name.into(),
            examples: reports.collect(),
            without_example: dialect
                .words
                .iter()
                .filter(said)
                .map(|word| word.word.clone())
                .collect(),
        })
    }

    fn differs(&self, dialect: &str, example: &Example) -> Vec<String> {
        let expected = expected_lines(&example.expected);
        let got = self.outcome(dialect, example);
        if expected == got {
            return Vec::new();
        }
        let (pretty_expected, pretty_got) = (pretty(&expected), pretty(&got));
        if pretty_expected == pretty_got {
            // They differ in bytes that a reader of JSON does not see.
            return diff(&expected, &got);
        }
        diff(&pretty_expected, &pretty_got)
    }

    /// What comes of an example, in the lines that `expected_lines` writes.
    fn outcome(&self, dialect: &str, example: &Example) -> Vec<String> {
        let mut written = example.subscription.clone();
        written.insert("dialect".into(), dialect.into());
        let tenant = match &example.event {
            Some(event) => event.tenant.clone(),
            None => match Tenant::parse("example") {
                Ok(tenant) => tenant,
                Err(bad) => return vec![bad.0],
            },
        };
        let subscription = match subscription_of(self, &written, &tenant) {
            Ok(subscription) => subscription,
            Err(refusal) => {
                let faults = refusal.faults.iter();
                return faults
                    .map(|fault| format!("refused: {} {}", fault.pointer, fault.message))
                    .collect();
            }
        };
        let Some(event) = &example.event else {
            return vec!["the subscription is accepted".into()];
        };
        let speaker = match self.speaker(&subscription) {
            Ok(speaker) => speaker,
            Err(error) => return vec![format!("error: {error}")],
        };
        let routed = subscription
            .selectors()
            .iter()
            .any(|selector| selector.matches(event));
        if !routed {
            return vec!["stopped: events".into()];
        }
        if let Err(stopped) = speaker.judge(event) {
            return vec![format!("stopped: {}", stopped.clause)];
        }
        let loaded = example.loaded.as_ref();
        let loaded = loaded.map(|(view, text)| (*view, &**text));
        match speaker.render(event, loaded, &subscription) {
            Ok(rendered) => got_lines(&rendered, &example.expected),
            Err(error) => vec![format!("error: {error}")],
        }
    }
}

/// The subscription that a person's fields make, or why they make none.
pub(crate) fn subscription_of(
    dialects: &Dialects,
    written: &Map<String, Value>,
    tenant: &Tenant,
) -> Result<Subscription, Refusal> {
    let mut fields = written.clone();
    let mut usual = |name: &str, value: Value| {
        fields.entry(name.to_owned()).or_insert(value);
    };
    usual("target_url", TARGET.into());
    usual("name", NAME.into());
    let dialect = written.get("dialect").and_then(Value::as_str);
    let dialect = dialect.and_then(|name| dialects.by_name.get(name));
    let instead = dialect.is_some_and(|dialect| {
        dialect.parameters.iter().any(|(name, parameter)| {
            matches!(parameter, Parameter::Events { .. }) && written.contains_key(name)
        })
    });
    if !instead {
        usual("events", Value::Array(vec!["*".into()]));
    }
    let rules = Rules {
        target: &TargetRules {
            allow: Vec::new(),
            require_https: false,
            ..TargetRules::default()
        },
        dialects,
        tenant: Some(tenant),
    };
    let body = Value::Object(fields).to_string();
    let (subscription, _, _) = parse_new(body.as_bytes(), &rules, EXAMPLE_TIME)?;
    Ok(subscription)
}

fn expected_lines(expected: &Expected) -> Vec<String> {
    match expected {
        Expected::Request {
            body,
            content_type,
            headers,
            view_sent,
        } => {
            let content_type = content_type.as_deref().unwrap_or("application/json");
            let headers = headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
            let headers: Vec<(&str, &str)> = headers.collect();
            lines(content_type, &headers, *view_sent, body)
        }
        Expected::Stopped(clause) => vec![format!("stopped: {clause}")],
        Expected::Error(text) => vec![format!("error: {text}")],
        Expected::Refused(faults) => faults
            .iter()
            .map(|fault| format!("refused: {fault}"))
            .collect(),
    }
}

fn got_lines(rendered: &Rendered, expected: &Expected) -> Vec<String> {
    // A view that the example does not ask about is no difference.
    let asked = matches!(
        expected,
        Expected::Request {
            view_sent: Some(_),
            ..
        }
    );
    let mut headers: Vec<(&str, &str)> = rendered
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    headers.sort_unstable();
    let view_sent = asked.then_some(rendered.view_sent);
    let body = String::from_utf8_lossy(&rendered.body);
    lines(&rendered.content_type, &headers, view_sent, &body)
}

fn lines(
    content_type: &str,
    headers: &[(&str, &str)],
    view_sent: Option<View>,
    body: &str,
) -> Vec<String> {
    let mut lines = vec![format!("content-type: {content_type}")];
    lines.extend(
        headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}")),
    );
    lines.extend(view_sent.map(|view| format!("view sent: {}", view_name(view))));
    lines.extend(body.split('\n').map(str::to_owned));
    lines
}

/// The lines, JSON taken apart so that a difference has a line of its own.
fn pretty(lines: &[String]) -> Vec<String> {
    let mut pretty = Vec::with_capacity(lines.len());
    for line in lines {
        match serde_json::from_str::<Value>(line) {
            Ok(value) if value.is_object() || value.is_array() => {
                let text = serde_json::to_string_pretty(&value).unwrap_or_default();
                pretty.extend(text.lines().map(str::to_owned));
            }
            _ => pretty.push(line.clone()),
        }
    }
    pretty
}

/// How many lines of each side are compared; beyond it the rest counts as one block.
const DIFF_LINES_MAX: usize = 1000;

/// The lines of both, those that both have in common with two spaces before them, `-` before what
/// was expected and `+` before what came.
fn diff(expected: &[String], got: &[String]) -> Vec<String> {
    let (old, new) = (
        &expected[..expected.len().min(DIFF_LINES_MAX)],
        &got[..got.len().min(DIFF_LINES_MAX)],
    );
    // How long the longest common run of lines is that begins at (i, j).
    let mut common = vec![vec![0u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut diff = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            diff.push(format!("  {}", old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            diff.push(format!("- {}", old[i]));
            i += 1;
        } else {
            diff.push(format!("+ {}", new[j]));
            j += 1;
        }
    }
    diff.extend(
        expected
            .iter()
            .skip(old.len())
            .map(|line| format!("- {line}")),
    );
    diff.extend(got.iter().skip(new.len()).map(|line| format!("+ {line}")));
    diff
}
