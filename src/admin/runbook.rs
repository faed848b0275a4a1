//! The runbook as a page, so that an operator can read it without access to the internet.
//!
//! It supports only the Markdown that `docs/runbook.md` uses: headings, paragraphs, lists, fenced code, and inline
//! code, strong and emphasised text and links. Links to other files become plain text, because the admin plane does not
//! serve those files.

use std::fmt::Write;

const TEXT: &str = include_str!("../../docs/runbook.md");

/// The runbook's content as HTML.
pub(super) fn html() -> String {
    render(TEXT)
}

#[derive(Default)]
struct Page {
    html: String,
    paragraph: String,
    in_list: bool,
    in_item: bool,
}

impl Page {
    fn end_paragraph(&mut self) {
        if !self.paragraph.is_empty() {
            let text = inline(&std::mem::take(&mut self.paragraph));
            let _ = write!(self.html, "<p>{text}</p>");
        }
    }

    fn end_item(&mut self) {
        self.end_paragraph();
        if std::mem::take(&mut self.in_item) {
            self.html.push_str("</li>");
        }
    }

    fn end_list(&mut self) {
        self.end_item();
        if std::mem::take(&mut self.in_list) {
            self.html.push_str("</ul>\n");
        }
    }
}

fn render(markdown: &str) -> String {
    let mut page = Page::default();
    let mut in_code = false;
    for line in markdown.lines() {
        let (text, is_indented) = (line.trim(), line.starts_with("  "));
        if text.starts_with("```") {
            if !in_code && !is_indented {
                page.end_list();
            }
            page.end_paragraph();
            page.html.push_str(if in_code { "</pre>\n" } else { "<pre tabindex=\"0\">" });
            in_code = !in_code;
        } else if in_code {
            // Writing to a string does not fail, here and below.
            let _ = writeln!(page.html, "{}", escape(line));
        } else if let Some((level, title)) = heading(line) {
            page.end_list();
            let _ = writeln!(page.html, "<h{level} id=\"{}\">{}</h{level}>", anchor(title), inline(title));
        } else if let Some(item) = line.strip_prefix("* ") {
            page.end_item();
            if !page.in_list {
                page.end_paragraph();
                page.html.push_str("<ul>");
                page.in_list = true;
            }
            page.html.push_str("<li>");
            page.in_item = true;
            page.paragraph.push_str(item);
        } else if text.is_empty() {
            page.end_paragraph();
        } else {
            if page.in_list && !is_indented {
                page.end_list();
            }
            if !page.paragraph.is_empty() {
                page.paragraph.push(' ');
            }
            page.paragraph.push_str(text);
        }
    }
    page.end_list();
    page.html
}

fn heading(line: &str) -> Option<(usize, &str)> {
    let title = line.trim_start_matches('#');
    let level = line.len() - title.len();
    ((1..=4).contains(&level) && title.starts_with(' ')).then(|| (level, title.trim()))
}

/// The anchor of a heading, in the form that GitHub uses, so that one link works in both places.
fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The inline elements of a line: code, strong and emphasised text, and links within the page.
fn inline(text: &str) -> String {
    let mut html = String::with_capacity(text.len() + 32);
    let mut rest = text;
    while let Some(at) = rest.find(['`', '*', '[']) {
        html.push_str(&escape(&rest[..at]));
        rest = &rest[at..];
        let between = |open: &str, close: &str| {
            let inner = rest.strip_prefix(open)?;
            let end = inner.find(close).filter(|end| *end > 0)?;
            Some((&inner[..end], &inner[end + close.len()..]))
        };
        let (made, after) = if let Some((code, after)) = between("`", "`") {
            (format!("<code>{}</code>", escape(code)), after)
        } else if let Some((strong, after)) = between("**", "**") {
            (format!("<strong>{}</strong>", inline(strong)), after)
        } else if let Some((emphasised, after)) = between("*", "*") {
            (format!("<em>{}</em>", inline(emphasised)), after)
        } else if let Some((link, after)) = between("[", ")")
            && let Some((words, target)) = link.split_once("](")
        {
            match target.strip_prefix('#') {
                Some(place) => (format!("<a href=\"#{}\">{}</a>", escape(place), inline(words)), after),
                None => (inline(words), after),
            }
        } else {
            (escape(&rest[..1]), &rest[1..])
        };
        html.push_str(&made);
        rest = after;
    }
    html.push_str(&escape(rest));
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_html_and_nothing_else_does() {
        let markdown = "# A `b`\n\nOne\ntwo <x> & *y*.\n\n* **See**: [it](#a-b),\n  [that](../x.md) and a[1].\n\n  ```sh\n  a < b\n  ```\n* Last\n\n## C\nEnd";
        let html = "<h1 id=\"a-b\">A <code>b</code></h1>\n<p>One two &lt;x&gt; &amp; <em>y</em>.</p><ul><li>\
                    <p><strong>See</strong>: <a href=\"#a-b\">it</a>, that and a[1].</p><pre tabindex=\"0\">  a &lt; b\n</pre>\n\
                    </li><li><p>Last</p></li></ul>\n<h2 id=\"c\">C</h2>\n<p>End</p>";
        assert_eq!(render(markdown), html);
    }

    #[test]
    fn every_link_of_the_runbook_leads_to_a_heading() {
        let html = html();
        let places: Vec<_> = html.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(places.len() > 3);
        for place in places {
            assert!(html.contains(&format!(" id=\"{place}\"")), "{place}");
        }
        assert!(html.contains(" id=\"circuit_open\""));
    }
}
