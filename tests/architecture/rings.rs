//! Finds files that import each other, directly or in a ring.
//!
//! A name counts as imported from the file that defines it, also where another file hands it on by `pub use`. A `mod`
//! line imports nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::Source;

/// The files of one crate, by their module paths.
pub struct Tree {
    files: BTreeMap<Vec<String>, File>,
}

struct File {
    path: String,
    /// The paths in `use` lines, by the name under which each is used.
    uses: BTreeMap<String, Vec<String>>,
    /// All paths in the file.
    paths: Vec<Vec<String>>,
}

impl Tree {
    /// Each source is named by its path below the folder of the crate.
    pub fn of(sources: impl IntoIterator<Item = Source>) -> Self {
        Self { files: sources.into_iter().map(|source| (module_path(&source.path), File::read(source))).collect() }
    }

    /// Every ring, as one line for each import in it.
    pub fn rings(&self) -> Vec<Vec<String>> {
        let imports: BTreeMap<&str, BTreeSet<&str>> =
            self.files.iter().map(|(module, file)| (file.path.as_str(), self.imports_of(module, file))).collect();
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            imports.keys().map(|file| (*file, reached_from(file, &imports))).collect();
        let mut rings: BTreeMap<BTreeSet<&str>, Vec<String>> = BTreeMap::new();
        for (file, imported) in &imports {
            let ring: BTreeSet<&str> =
                reached[file].iter().filter(|other| reached[*other].contains(file)).copied().collect();
            let inside = imported.iter().filter(|other| ring.contains(*other));
            let lines: Vec<_> = inside.map(|other| format!("{file} imports {other}")).collect();
            rings.entry(ring).or_default().extend(lines);
        }
        rings.into_values().filter(|ring| !ring.is_empty()).collect()
    }

    fn imports_of(&self, module: &[String], file: &File) -> BTreeSet<&str> {
        let defined_in = |path: &Vec<String>| Some(self.files[&self.resolve(module, path, 0)?].path.as_str());
        file.paths.iter().filter_map(defined_in).filter(|other| *other != file.path).collect()
    }

    /// The module that defines what `path` names in the module `from`; `None` if that is not one of this crate.
    fn resolve(&self, from: &[String], path: &[String], depth: usize) -> Option<Vec<String>> {
        const DEEPEST: usize = 8;
        let file = self.files.get(from).filter(|_| depth <= DEEPEST)?;
        let (mut module, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (from.to_vec(), &path[1..]),
            "super" => {
                let up = path.iter().take_while(|name| *name == "super").count();
                (from[..from.len().checked_sub(up)?].to_vec(), &path[up..])
            }
            name if self.files.contains_key(&child(from, name)) => (from.to_vec(), path),
            name => {
                let used = file.uses.get(name).filter(|used| *used != path)?;
                return self.resolve(from, &[used, &path[1..]].concat(), depth + 1);
            }
        };
        while let Some((name, below)) = rest.split_first()
            && self.files.contains_key(&child(&module, name))
        {
            (module, rest) = (child(&module, name), below);
        }
        let handed_on = rest.first().and_then(|name| self.files.get(&module)?.uses.get(name));
        match handed_on {
            Some(used) => self.resolve(&module, &[used, &rest[1..]].concat(), depth + 1),
            None => Some(module).filter(|module| self.files.contains_key(module)),
        }
    }
}

impl File {
    fn read(source: Source) -> Self {
        let (mut uses, mut paths) = (BTreeMap::new(), Vec::new());
        for (_, line) in &source.lines {
            let code = without_places(line.trim().trim_end_matches(';'));
            match code.split_once("use ").filter(|(before, _)| before.is_empty() || before.starts_with("pub")) {
                Some((_, tree)) => {
                    for (path, name) in expanded(tree) {
                        paths.push(path.clone());
                        uses.insert(name, path);
                    }
                }
                None => paths.extend(paths_in(&code)),
            }
        }
        Self { path: source.path, uses, paths }
    }
}

/// Code without the module in `pub(in crate::a)`, which imports nothing.
fn without_places(code: &str) -> String {
    let parts = code.split_once("pub(in ").and_then(|(before, rest)| Some((before, rest.split_once(')')?.1)));
    parts.map_or_else(|| code.to_owned(), |(before, after)| format!("{before}pub{after}"))
}

/// `a/mod.rs` and `a.rs` are the module `a`, and the root of the crate is the empty path.
fn module_path(file: &str) -> Vec<String> {
    let mut path: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if matches!(path.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        path.pop();
    }
    path
}

fn child(module: &[String], name: &str) -> Vec<String> {
    [module, &[name.to_owned()]].concat()
}

fn reached_from<'f>(file: &str, imports: &BTreeMap<&'f str, BTreeSet<&'f str>>) -> BTreeSet<&'f str> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = imports[file].iter().copied().collect();
    while let Some(file) = next.pop() {
        if reached.insert(file) {
            next.extend(&imports[file]);
        }
    }
    reached
}

/// The paths of a `use`, each with the name that it gets: `a::{b, c as d}` is `a::b` as `b`, and `a::c` as `d`.
fn expanded(tree: &str) -> Vec<(Vec<String>, String)> {
    let (prefix, group) = match tree.split_once('{') {
        Some((prefix, group)) => (prefix, group.trim().trim_end_matches('}')),
        None => ("", tree),
    };
    let mut found = Vec::new();
    for part in group.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        assert!(!part.contains('{'), "a group in a group of a `use` is not read: {tree}");
        let (path, name) = part.split_once(" as ").map_or((part, None), |(path, name)| (path, Some(name.to_owned())));
        let mut path: Vec<String> = segments(prefix).chain(segments(path)).map(str::to_owned).collect();
        if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
            path.pop();
        }
        let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
        found.push((path, name));
    }
    found
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split("::").map(str::trim).filter(|name| !name.is_empty())
}

/// The paths in code that is no `use`: `let a = b::C::d();` has `b::C::d`.
fn paths_in(code: &str) -> impl Iterator<Item = Vec<String>> {
    let is_of_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let words = code.split(move |c| !is_of_path(c)).filter(|word| word.contains("::"));
    words.map(|word| word.split("::").map(str::to_owned).collect())
}

#[test]
fn a_ring_is_found_through_a_name_that_is_handed_on() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), lines: super::code(text) };
    let tree = |b: &str| {
        Tree::of([
            source("lib.rs", "mod a;\nmod b;\nmod c;\nmod d;"),
            source("a/mod.rs", "mod inner;\npub use self::inner::Thing;"),
            source("a/inner.rs", "use crate::b::{self, Other};\npub(in crate::a) struct Thing;"),
            source("b.rs", b),
            source("c.rs", "fn f() { crate::d::g() }"),
            source("d.rs", "use super::c;\nuse std::fmt;\nfn g() { c::f() }"),
        ])
        .rings()
    };
    let both = vec!["c.rs imports d.rs".to_owned(), "d.rs imports c.rs".to_owned()];
    assert_eq!(tree("pub struct Other;"), std::slice::from_ref(&both));
    let first = vec!["a/inner.rs imports b.rs".to_owned(), "b.rs imports a/inner.rs".to_owned()];
    assert_eq!(tree("use crate::a::Thing as It;\npub struct Other(It);"), [first, both]);
    assert_eq!(expanded("a::{self, b::c, d as e}").len(), 3);
}
