//! The page that shows a running job: its files, which are part of the program.
//!
//! The page is made of HTML, a style sheet and scripts without a build step. It asks the paths that [`super::monitor`]
//! answers, and nothing else: it works without a network beyond the job's own. Texts of the job become text nodes, never
//! HTML; the server's content policy refuses scripts and styles from anywhere but these files.

use crate::view::http::HttpReply;

/// Beginning of the paths of the page's files.
pub(crate) const FOLDER: &str = "/page/";
/// The file that is served as the page.
pub(crate) const INDEX: &str = "index.html";

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files: name, content type, and text.
const FILES: [(&str, &str, &str); 10] = [
    (INDEX, HTML, include_str!("page/index.html")),
    ("style.css", STYLE, include_str!("page/style.css")),
    ("main.js", SCRIPT, include_str!("page/main.js")),
    ("fetch.js", SCRIPT, include_str!("page/fetch.js")),
    ("dom.js", SCRIPT, include_str!("page/dom.js")),
    ("graph.js", SCRIPT, include_str!("page/graph.js")),
    ("lanes.js", SCRIPT, include_str!("page/lanes.js")),
    ("figures.js", SCRIPT, include_str!("page/figures.js")),
    ("views.js", SCRIPT, include_str!("page/views.js")),
    ("windows.js", SCRIPT, include_str!("page/windows.js")),
];

/// Returns a file of the page.
pub(super) fn asset(name: &str) -> HttpReply {
    match FILES.iter().find(|(known, _, _)| *known == name) {
        Some((_, kind, text)) => HttpReply::Whole(200, kind, (*text).to_owned()),
        None => HttpReply::text(404, "the page has no such file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ways of a script to run text as code, or to read it as HTML.
    const DANGEROUS: [&str; 9] = [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "DOMParser",
        "createContextualFragment",
        "eval(",
        "new Function",
        "javascript:",
    ];

    #[test]
    fn the_page_is_small_and_needs_no_other_server() {
        let all: usize = FILES.iter().map(|(_, _, text)| text.len()).sum();
        assert!(all <= 200 << 10, "{all} bytes");
        for (name, kind, text) in FILES {
            let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"), "{name} names another server");
            assert!(!elsewhere.contains("url(") && !elsewhere.contains("@import"), "{name} loads another file");
            let found: Vec<_> = DANGEROUS.iter().filter(|word| text.contains(**word)).collect();
            assert!(kind != SCRIPT || found.is_empty(), "{name} has {found:?}");
        }
    }

    #[test]
    fn nothing_in_the_page_is_inline_and_all_that_it_names_is_there() {
        let (_, _, page) = FILES[0];
        for inline in [" style=", " onclick=", " onload=", "<style", "<script>"] {
            assert!(!page.contains(inline), "the content policy refuses `{inline}`");
        }
        let scripts = FILES.iter().flat_map(|(_, _, text)| text.split(['"', '\'']));
        let named = scripts.filter_map(|word| word.strip_prefix(FOLDER).or_else(|| word.strip_prefix("./")));
        let named: Vec<_> = named.collect();
        assert!(named.len() > FILES.len(), "{named:?}");
        for name in named {
            assert!(FILES.iter().any(|(known, _, _)| *known == name), "there is no {name}");
        }
    }
}
