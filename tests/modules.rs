//! The map of the modules stays readable: imports form no circle, a type's name is defined once, and documentation says
//! what a thing is.
//!
//! The sources are parsed, tests in them left out. An import goes to the file that defines a name, through all `pub use`
//! between. A path counts wherever it stands: in `use`, in a type, in an expression, in the tokens of a macro. A `pub use`
//! counts for who takes the name there, which may be the rest of the same file; `mod child;` counts for nobody.
//! `MODULES=print cargo test --test modules -- --nocapture` prints every arrow between files of a module.
#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "common/source_files.rs"]
mod source_files;

use std::collections::{BTreeMap, BTreeSet};

use source_files::source_files;
use syn::buffer::{Cursor, TokenBuffer};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, UseTree};

/// Modules inside which no circle of imports may be.
const WITHOUT_CIRCLES: [&str; 9] = ["stream", "job", "durable", "source", "sink", "view", "status", "cli", "format"];

/// Type names that formats or connectors have in parallel, each in modules of its own.
const PARALLELS: [&str; 3] = ["Encoder", "Sink", "Source"];

/// Words with which documentation of an item opens that does not say what it is.
const QUESTIONS: [&str; 12] =
    ["What", "Whether", "How", "Where", "Who", "Whose", "When", "Which", "Why", "If", "As", "That"];
/// Parts of a thousand of all documented items that may open so.
const MOST_QUESTIONS: usize = 30;

/// A module: a path such as `stream::window`; the crate's root is empty.
type Module = Vec<String>;

fn is_for_tests(attributes: &[Attribute]) -> bool {
    let is_test = |attribute: &Attribute| {
        let Ok(list) = attribute.meta.require_list() else { return attribute.path().is_ident("test") };
        list.path.is_ident("cfg") && list.tokens.to_string() == "test"
    };
    attributes.iter().any(is_test)
}

/// All source files by their module, tests left out.
struct Sources {
    files: BTreeMap<Module, syn::File>,
    /// Names that a module gives on: the module and the name that they stand for.
    given_on: BTreeMap<(Module, String), Vec<String>>,
}

impl Sources {
    fn read() -> Sources {
        let files = modules("src");
        assert!(files.len() > 100, "only {} files were found", files.len());
        Sources::of(files)
    }

    fn of(files: BTreeMap<Module, syn::File>) -> Sources {
        let mut sources = Sources { files, given_on: BTreeMap::new() };
        let mut given_on = BTreeMap::new();
        for (module, file) in &sources.files {
            for item in &file.items {
                let Item::Use(import) = item else { continue };
                if matches!(import.vis, syn::Visibility::Inherited) || is_for_tests(&import.attrs) {
                    continue;
                }
                for (path, name) in paths_of(&import.tree) {
                    given_on.insert((module.clone(), name), sources.absolute(module, &path));
                }
            }
        }
        sources.given_on = given_on;
        sources
    }

    /// A path as it is from the crate's root; one that leads out of the crate stays as it is.
    fn absolute(&self, from: &Module, path: &[String]) -> Vec<String> {
        let mut place = from.clone();
        let mut rest = path;
        match path.first().map(String::as_str) {
            Some("crate") => (place, rest) = (Vec::new(), &path[1..]),
            Some("self") => rest = &path[1..],
            Some("super") => {
                while rest.first().is_some_and(|name| name == "super") {
                    place.pop();
                    rest = &rest[1..];
                }
            }
            Some(first) if self.files.contains_key(&joined(from, first)) => {}
            _ => return path.to_vec(),
        }
        place.extend(rest.iter().cloned());
        place
    }

    /// A path as it is from the crate's root, where a name that the file gives on stands for what it is there.
    fn named(&self, from: &Module, path: &[String]) -> Vec<String> {
        match path.first().and_then(|first| self.given_on.get(&(from.clone(), first.clone()))) {
            Some(given) => given.iter().chain(&path[1..]).cloned().collect(),
            // A single name is one of this file, and may be that of a variable.
            None if path.len() == 1 => Vec::new(),
            None => self.absolute(from, path),
        }
    }

    /// The file in which the thing at this path, from the crate's root, is defined.
    fn home(&self, path: &[String]) -> Option<Module> {
        let mut path = path.to_vec();
        for _ in 0..20 {
            let inside = (0..=path.len()).rev().find(|length| self.files.contains_key(&path[..*length]))?;
            if inside == 0 {
                return None;
            }
            let (module, name) = (path[..inside].to_vec(), path.get(inside));
            match name.and_then(|name| self.given_on.get(&(module.clone(), name.clone()))) {
                Some(further) => path = further.clone(),
                None => return Some(module),
            }
        }
        None
    }

    /// For each module those that it uses.
    fn arrows(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let mut arrows = BTreeMap::<Module, BTreeSet<Module>>::new();
        for (module, file) in &self.files {
            let mut found = Paths::default();
            found.visit_file(file);
            let homes = found.paths.iter().filter_map(|path| self.home(&self.named(module, path)));
            arrows.entry(module.clone()).or_default().extend(homes.filter(|home| home != module));
        }
        arrows
    }
}

fn joined(module: &Module, name: &str) -> Module {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

/// Returns the files below a directory of the project by their module, tests left out.
fn modules(directory: &str) -> BTreeMap<Module, syn::File> {
    let mut files = BTreeMap::new();
    for (name, text) in source_files(directory) {
        let mut module: Module = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        let is_of_tests = module.iter().any(|part| part == "tests") || module.last().is_some_and(|last| last == "main");
        if is_of_tests {
            continue;
        }
        if module.last().is_some_and(|last| last == "lib" || last == "mod") {
            module.pop();
        }
        files.insert(module, syn::parse_file(&text).unwrap());
    }
    files
}

/// The paths that an import names, each with the name that it has here.
fn paths_of(tree: &UseTree) -> Vec<(Vec<String>, String)> {
    match tree {
        UseTree::Path(path) => {
            let prefixed = |(inner, name): (Vec<String>, String)| {
                // `a::{self}` stands for `a`.
                let inner = if inner == ["self"] { Vec::new() } else { inner };
                let name = if name == "self" { path.ident.to_string() } else { name };
                ([path.ident.to_string()].into_iter().chain(inner).collect(), name)
            };
            paths_of(&path.tree).into_iter().map(prefixed).collect()
        }
        UseTree::Name(name) => vec![(vec![name.ident.to_string()], name.ident.to_string())],
        UseTree::Rename(rename) => vec![(vec![rename.ident.to_string()], rename.rename.to_string())],
        UseTree::Glob(_) => vec![(Vec::new(), "*".into())],
        UseTree::Group(group) => group.items.iter().flat_map(paths_of).collect(),
    }
}

/// Words before a name that is defined.
const DEFINING: [&str; 5] = ["enum", "fn", "struct", "trait", "type"];

/// All paths of a file that may name something of the crate, tests left out.
#[derive(Default)]
struct Paths {
    paths: Vec<Vec<String>>,
}

impl Paths {
    /// Adds the paths in the tokens of a macro. A single name there counts only if it may be that of a type, and is not
    /// defined there: another may be a variable's.
    fn add_tokens(&mut self, mut at: Cursor<'_>) {
        while !at.eof() {
            if let Some((inside, _, _, after)) = at.any_group() {
                self.add_tokens(inside);
                at = after;
                continue;
            }
            if let Some((_, after)) = at.ident().filter(|(word, _)| DEFINING.iter().any(|defining| word == defining)) {
                at = after.ident().map_or(after, |(_defined, after)| after);
                continue;
            }
            let mut path = Vec::new();
            while let Some((name, after)) = at.ident() {
                path.push(name.to_string());
                at = after;
                match colons(at).filter(|after| after.ident().is_some()) {
                    Some(after) => at = after,
                    None => break,
                }
            }
            if path.is_empty() {
                at = at.token_tree().unwrap().1;
            } else if path.len() > 1 || path[0].starts_with(char::is_uppercase) {
                self.paths.push(path);
            }
        }
    }
}

/// The place behind `::`.
fn colons(at: Cursor<'_>) -> Option<Cursor<'_>> {
    let (_, second) = at.punct().filter(|(first, _)| first.as_char() == ':')?;
    second.punct().filter(|(second, _)| second.as_char() == ':').map(|(_, after)| after)
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            _ => &[],
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.add_tokens(TokenBuffer::new2(called.tokens.clone()).begin());
        visit::visit_macro(self, called);
    }

    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        // What is given on counts for who takes it there.
        if matches!(import.vis, syn::Visibility::Inherited) && !is_for_tests(&import.attrs) {
            self.paths.extend(paths_of(&import.tree).into_iter().map(|(path, _name)| path));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }
}

/// The circles of a graph: sets of nodes each of which leads to each other.
fn circles(arrows: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<BTreeSet<Module>> {
    let reachable = |from: &Module| {
        let (mut seen, mut waiting) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(node) = waiting.pop() {
            for next in arrows.get(&node).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    waiting.push(next.clone());
                }
            }
        }
        seen
    };
    let reach: BTreeMap<_, _> = arrows.keys().map(|node| (node, reachable(node))).collect();
    let mut found: Vec<BTreeSet<Module>> = Vec::new();
    for (node, reached) in &reach {
        if reached.contains(*node) && !found.iter().any(|circle| circle.contains(*node)) {
            let back = |other: &&Module| reach.get(other).is_some_and(|reached| reached.contains(*node));
            found.push(reached.iter().filter(back).cloned().collect());
        }
    }
    found
}

/// The part of a graph whose modules lie in one module.
fn within(arrows: &BTreeMap<Module, BTreeSet<Module>>, top: &str) -> BTreeMap<Module, BTreeSet<Module>> {
    let is_inside = |module: &Module| module.first().is_some_and(|first| first == top);
    let inside = arrows.iter().filter(|(module, _)| is_inside(module));
    inside
        .map(|(module, used)| (module.clone(), used.iter().filter(|used| is_inside(used)).cloned().collect()))
        .collect()
}

fn written(module: &Module) -> String {
    module.join("::")
}

#[test]
fn imports_form_no_circle() {
    let arrows = Sources::read().arrows();
    let mut told = String::new();
    for top in WITHOUT_CIRCLES {
        let inside = within(&arrows, top);
        let count: usize = inside.values().map(BTreeSet::len).sum();
        println!("{top}: {} files, {count} arrows", inside.len());
        if std::env::var_os("MODULES").is_some() {
            for (module, used) in &inside {
                println!("  {} -> {}", written(module), used.iter().map(written).collect::<Vec<_>>().join(", "));
            }
        }
        for circle in circles(&inside) {
            told.push_str(&format!("\n{top}: a circle of {} files\n", circle.len()));
            for module in &circle {
                let used: Vec<_> = inside[module].intersection(&circle).map(written).collect();
                told.push_str(&format!("  {} -> {}\n", written(module), used.join(", ")));
            }
        }
    }
    assert!(told.is_empty(), "{told}");
}

/// The names of the types that a module defines, outside of functions and tests.
fn types_of(items: &[Item]) -> Vec<String> {
    let mut names = Vec::new();
    for item in items {
        let (name, attributes) = match item {
            Item::Struct(item) => (&item.ident, &item.attrs),
            Item::Enum(item) => (&item.ident, &item.attrs),
            Item::Trait(item) => (&item.ident, &item.attrs),
            Item::Type(item) => (&item.ident, &item.attrs),
            Item::Union(item) => (&item.ident, &item.attrs),
            Item::Mod(ItemMod { attrs, content: Some((_, items)), .. }) if !is_for_tests(attrs) => {
                names.extend(types_of(items));
                continue;
            }
            _ => continue,
        };
        if !is_for_tests(attributes) {
            names.push(name.to_string());
        }
    }
    names
}

#[test]
fn a_type_name_is_defined_once() {
    let sources = Sources::read();
    let mut homes = BTreeMap::<String, Vec<String>>::new();
    for (module, file) in &sources.files {
        for name in types_of(&file.items) {
            homes.entry(name).or_default().push(written(module));
        }
    }
    let twice: Vec<_> = homes
        .iter()
        .filter(|(name, homes)| homes.len() > 1 && !PARALLELS.contains(&name.as_str()))
        .map(|(name, homes)| format!("{name}: {}", homes.join(", ")))
        .collect();
    assert!(twice.is_empty(), "{} names:\n{}", twice.len(), twice.join("\n"));
    for name in PARALLELS {
        assert!(homes.get(name).is_some_and(|homes| homes.len() > 1), "{name} has no parallel any more");
    }
}

/// First lines of the documentation of all items of a file.
#[derive(Default)]
struct Openings {
    lines: Vec<String>,
    /// `true` behind a line of documentation: the next one goes on with it.
    goes_on: bool,
}

impl<'ast> Visit<'ast> for Openings {
    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let is_inner = matches!(attribute.style, syn::AttrStyle::Inner(_));
        let Ok(named) = attribute.meta.require_name_value() else { return };
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &named.value else { return };
        if named.path.is_ident("doc") && !is_inner && !std::mem::replace(&mut self.goes_on, true) {
            self.lines.push(text.value().trim().to_owned());
        }
    }

    fn visit_ident(&mut self, _: &'ast syn::Ident) {
        self.goes_on = false;
    }
}

fn asks(opening: &str) -> bool {
    let first = opening.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
    QUESTIONS.contains(&first)
}

#[test]
fn documentation_opens_with_what_a_thing_is_or_does() {
    let (mut all, mut questions) = (0, Vec::new());
    for below in ["src", "queries", "benches", "tests"] {
        for (module, file) in &modules(below) {
            let mut openings = Openings::default();
            openings.visit_file(file);
            all += openings.lines.len();
            let told = |opening: String| format!("{below}/{}: {opening}", module.join("/"));
            questions.extend(openings.lines.into_iter().filter(|opening| asks(opening)).map(told));
        }
    }
    println!("{} of {all} items", questions.len());
    assert!(questions.len() * 1000 <= all * MOST_QUESTIONS, "{} of {all}:\n{}", questions.len(), questions.join("\n"));
}

#[test]
fn the_rules_of_modules_bite() {
    let parsed = |files: &[(&str, &str)]| {
        let file = |(path, text): &(&str, &str)| {
            (path.split("::").map(str::to_owned).collect::<Module>(), syn::parse_file(text).unwrap())
        };
        Sources::of(files.iter().map(file).collect())
    };
    let found = |files: &[(&str, &str)]| {
        circles(&parsed(files).arrows())
            .iter()
            .map(|circle| circle.iter().map(written).collect())
            .collect::<Vec<Vec<_>>>()
    };
    let (a, b) = ("use super::b::B; pub struct A;", "pub struct B;");
    assert!(found(&[("m", "mod a; mod b;"), ("m::a", a), ("m::b", b)]).is_empty());
    let back = "pub struct B; fn f(_: crate::m::a::A) {}";
    assert_eq!(found(&[("m", "mod a; mod b;"), ("m::a", a), ("m::b", back)]), [["m::a", "m::b"]]);
    // What a module gives on leads to where it is defined; tests do not count.
    let given = ("m", "mod a; mod b; pub use a::A;");
    assert_eq!(found(&[given, ("m::a", a), ("m::b", "use super::A;")]), [["m::a", "m::b"]]);
    // A parent that names its child by a relative path imports it, unless it only gives a name on.
    let child = ("m::c", "use super::P; pub struct C; pub const N: u8 = 0;");
    for parent in [
        "fn f(_: c::C) {}",
        "const N: u8 = self::c::N;",
        "fn f() -> u8 { g!(1, [c::N]) }",
        "pub use c::C; fn f(_: C) {}",
        "pub use self::c::C; fn f() { g!(C) }",
        "fn f() { use c::C; }",
    ] {
        let parent = format!("mod c; pub struct P; {parent}");
        assert_eq!(found(&[("m", &parent), child]), [["m", "m::c"]], "{parent}");
    }
    for parent in [
        "",
        "pub use c::C;",
        "fn f(c: u8) -> u8 { c + g!(c) }",
        "pub use c::C; g! { type C; }",
        "#[cfg(test)] fn f(_: c::C) {}",
    ] {
        assert!(found(&[("m", &format!("mod c; pub struct P; {parent}")), child]).is_empty(), "{parent}");
    }
    let uncle = ("m::a::d", "fn f() { super::super::b::B; }");
    assert_eq!(
        found(&[("m::a", "mod d;"), uncle, ("m::b", "pub struct B; type D = super::a::d::D;")]),
        [["m::a::d", "m::b"]]
    );
    let tests = "#[cfg(test)] use super::a::A; #[cfg(test)] mod tests { use super::super::a::A; }";
    assert!(found(&[given, ("m::a", a), ("m::b", tests)]).is_empty());
    assert_eq!(
        types_of(&syn::parse_file("struct A; #[cfg(test)] mod tests { struct B; } type C = A;").unwrap().items),
        ["A", "C"]
    );
    assert!(asks("What it is.") && asks("How: so.") && !asks("Whatever is there.") && !asks("Commits it."));
}
