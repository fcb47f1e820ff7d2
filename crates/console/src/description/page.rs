//! The document as one page of HTML that needs no script and nothing from elsewhere.

use std::fmt::Arguments;

use serde_json::{Map, Value};

const HEAD: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
<title>Postrider API</title><style>\
:root{color-scheme:light dark}\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
details{border:1px solid #8886;border-radius:6px;margin:.4rem 0;padding:.3rem .8rem}\
summary{cursor:pointer}summary b{display:inline-block;min-width:4.5rem}\
code,pre{font:14px/1.4 ui-monospace,monospace}\
pre{background:#8882;border-radius:6px;overflow:auto;padding:.6rem}\
table{border-collapse:collapse;width:100%}\
td,th{border-top:1px solid #8884;padding:.25rem .6rem .25rem 0;text-align:left;vertical-align:top}\
h4{margin:.8rem 0 .2rem}\
</style></head><body>\n";

/// How deep a type is spelt out before it is just an object.
const DEPTH_MAX: u8 = 4;

/// Writes the page.
pub(crate) fn write(document: &Value) -> String {
    let mut page = Page {
        html: HEAD.to_owned(),
        document,
    };
    page.all();
    page.html.push_str("</body></html>\n");
    page.html
}

struct Page<'d> {
    html: String,
    document: &'d Value,
}

impl<'d> Page<'d> {
    /// Appends what is HTML already; whatever is not goes through [`plain`] or [`prose`].
    fn add(&mut self, html: Arguments<'_>) {
        self.html.push_str(&html.to_string());
    }

    fn all(&mut self) {
        let info = &self.document["info"];
        self.add(format_args!(
            "<h1>{} <small>{}</small></h1>\n{}<p>For programs: <a href=\"/openapi.json\">OpenAPI</a>.</p>\n",
            plain(text(info, "title")),
            plain(text(info, "version")),
            prose(text(info, "description")),
        ));
        for tag in list(self.document, "tags") {
            let name = text(tag, "name");
            self.add(format_args!(
                "<h2>{}</h2>\n{}",
                plain(name),
                prose(text(tag, "description"))
            ));
            for (path, methods) in fields(self.document, "paths") {
                for (method, operation) in methods.as_object().into_iter().flatten() {
                    if list(operation, "tags").iter().any(|own| own == name) {
                        self.operation(method, path, operation);
                    }
                }
            }
        }
        self.add(format_args!("<h2>Schemas</h2>\n"));
        for (name, schema) in fields(&self.document["components"], "schemas") {
            self.schema(name, schema);
        }
    }

    fn operation(&mut self, method: &str, path: &str, operation: &'d Value) {
        self.add(format_args!(
            "<details id=\"{}\"><summary><b>{}</b> <code>{}</code> {}</summary>\n{}",
            plain(text(operation, "operationId")),
            plain(&method.to_uppercase()),
            plain(path),
            plain(text(operation, "summary")),
            prose(text(operation, "description")),
        ));
        let parameters = list(operation, "parameters");
        if !parameters.is_empty() {
            self.add(format_args!("<h4>Parameters</h4><table>"));
            for parameter in parameters {
                let parameter = self.resolved(parameter);
                self.add(format_args!(
                    "<tr><td><code>{}</code><td>{}<td>{}<td>{}",
                    plain(text(parameter, "name")),
                    plain(text(parameter, "in")),
                    kind(&parameter["schema"], DEPTH_MAX),
                    prose(text(parameter, "description")),
                ));
            }
            self.add(format_args!("</table>"));
        }
        for (media, content) in fields(&operation["requestBody"], "content") {
            self.add(format_args!("<h4>Body: <code>{}</code></h4>", plain(media)));
            self.content(content);
        }
        self.add(format_args!("<h4>Answers</h4><table>"));
        for (status, answer) in fields(operation, "responses") {
            let answer = self.resolved(answer);
            self.add(format_args!(
                "<tr><td>{}<td>{}",
                plain(status),
                prose(text(answer, "description"))
            ));
            for (name, _) in fields(answer, "headers") {
                self.add(format_args!("<p>Header <code>{}</code></p>", plain(name)));
            }
            for (media, content) in fields(answer, "content") {
                self.add(format_args!("<td><code>{}</code>", plain(media)));
                self.content(content);
            }
        }
        self.add(format_args!("</table></details>\n"));
    }

    /// What a body is, and an example of it.
    fn content(&mut self, content: &'d Value) {
        self.add(format_args!(
            "<p>{}</p>",
            kind(&content["schema"], DEPTH_MAX)
        ));
        let examples = fields(content, "examples").map(|(_, example)| &example["value"]);
        for example in content.get("example").into_iter().chain(examples) {
            self.example(example);
        }
    }

    fn example(&mut self, example: &Value) {
        let written = match example {
            Value::String(text) => text.clone(),
            other => serde_json::to_string_pretty(other).unwrap_or_default(),
        };
        self.add(format_args!("<pre>{}</pre>", plain(&written)));
    }

    fn schema(&mut self, name: &str, schema: &'d Value) {
        self.add(format_args!(
            "<details id=\"schema-{0}\"><summary><code>{0}</code></summary>\n{1}",
            plain(name),
            prose(text(schema, "description")),
        ));
        let parts = list(schema, "allOf");
        if !schema["properties"].is_object() && parts.is_empty() {
            self.add(format_args!("<p>{}</p>", kind(schema, DEPTH_MAX)));
        }
        for part in parts.iter().chain([schema]) {
            if part.get("$ref").is_some() {
                self.add(format_args!(
                    "<p>All of {}, and:</p>",
                    kind(part, DEPTH_MAX)
                ));
            }
            self.properties(part);
        }
        for example in list(schema, "examples") {
            self.example(example);
        }
        self.add(format_args!("</details>\n"));
    }

    fn properties(&mut self, schema: &'d Value) {
        if !schema["properties"].is_object() {
            return;
        }
        let required = list(schema, "required");
        self.add(format_args!("<table>"));
        for (name, property) in fields(schema, "properties") {
            let must = required.iter().any(|own| own == name);
            self.add(format_args!(
                "<tr><td><code>{}</code><td>{}<td>{}<td>{}",
                plain(name),
                if must { "always" } else { "" },
                kind(property, DEPTH_MAX),
                prose(text(property, "description")),
            ));
        }
        self.add(format_args!("</table>"));
    }

    /// What a reference of the document stands for.
    fn resolved(&self, value: &'d Value) -> &'d Value {
        let pointer = text(value, "$ref").strip_prefix('#');
        pointer
            .and_then(|pointer| self.document.pointer(pointer))
            .unwrap_or(value)
    }
}

/// What a schema takes, in a few words of HTML.
fn kind(schema: &Value, depth: u8) -> String {
    if let Some(name) = text(schema, "$ref").rsplit('/').next()
        && !name.is_empty()
    {
        return format!("<a href=\"#schema-{0}\">{0}</a>", plain(name));
    }
    let Some(depth) = depth.checked_sub(1) else {
        return "object".to_owned();
    };
    for one_of in ["anyOf", "allOf"] {
        let parts = list(schema, one_of);
        if !parts.is_empty() {
            let parts: Vec<_> = parts.iter().map(|part| kind(part, depth)).collect();
            return parts.join(if one_of == "anyOf" { " or " } else { " and " });
        }
    }
    let words = list(schema, "enum");
    if !words.is_empty() {
        let words = words
            .iter()
            .map(|word| format!("<code>{}</code>", plain(&bare(word))));
        return words.collect::<Vec<_>>().join(", ");
    }
    let types: Vec<String> = match &schema["type"] {
        Value::Array(all) => all.iter().map(bare).collect(),
        Value::String(one) => vec![one.clone()],
        _ => return "any".to_owned(),
    };
    let types = types.iter().map(|one| match one.as_str() {
        "array" => format!("array of {}", kind(&schema["items"], depth)),
        "object" => {
            let fields = fields(schema, "properties").map(|(name, property)| {
                format!("<code>{}</code>: {}", plain(name), kind(property, depth))
            });
            let fields = fields.collect::<Vec<_>>().join(", ");
            if fields.is_empty() {
                "object".to_owned()
            } else {
                format!("{{{fields}}}")
            }
        }
        other => match text(schema, "format") {
            "" => plain(other),
            format => plain(format),
        },
    });
    types.collect::<Vec<_>>().join(" or ")
}

/// A text without its quotes, anything else as JSON.
fn bare(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_default()
}

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

fn fields<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    value[name].as_object().into_iter().flat_map(Map::iter)
}

/// Text that is no HTML.
fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// Paragraphs, with what stands in backticks as code.
fn prose(text: &str) -> String {
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.is_empty());
    let paragraphs = paragraphs.map(|paragraph| {
        let mut html = String::from("<p>");
        for (n, part) in paragraph.split('`').enumerate() {
            let part = plain(part);
            if n % 2 == 1 {
                html.push_str(&format!("<code>{part}</code>"));
            } else {
                html.push_str(&part);
            }
        }
        html + "</p>\n"
    });
    paragraphs.collect()
}
