//! Words into server blocks and directives: snippets, imports, nested blocks. Knows no plugin.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Problem;
use super::lex::{Place, Word, words};

/// Blocks in blocks, and imports in imports, beyond which something is wrong.
const MAX_DEPTH: usize = 16;
/// Words of a whole configuration; snippets that import each other often could make more of little text.
const MAX_WORDS: usize = 1 << 20;

/// Where a Corefile and what it imports come from; a test gives its own.
pub trait Surroundings {
    /// The text of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, file: &Path) -> std::io::Result<String>;
    /// The files that a pattern with `*` names, in order.
    fn glob(&self, pattern: &Path) -> Vec<PathBuf>;
    /// An environment variable.
    fn variable(&self, name: &str) -> Option<String>;
}

/// One server block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What stands before its brace, such as `example.org:53` and `tls://.`.
    pub keys: Vec<Word>,
    /// The plugins.
    pub directives: Vec<Directive>,
}

/// One line, and the block behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// The first word.
    pub name: Word,
    /// The other words of the line.
    pub args: Vec<Word>,
    /// The lines of its block.
    pub body: Vec<Directive>,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The server blocks, in order.
    pub blocks: Vec<Block>,
    /// Every file that was read, so that a change can be seen.
    pub files: Vec<PathBuf>,
}

/// Reads a Corefile and all that it imports.
pub fn parse(file: &Path, surroundings: &dyn Surroundings, problems: &mut Vec<Problem>) -> Parsed {
    let mut reader = Reader {
        surroundings,
        snippets: BTreeMap::new(),
        parsed: Parsed::default(),
        problems,
        words: 0,
    };
    let name: Arc<str> = file.display().to_string().into();
    let origin = Place { file: name, line: 1 };
    if let Some(words) = reader.file(file, &origin) {
        reader.blocks(words);
    }
    reader.parsed
}

struct Reader<'a> {
    surroundings: &'a dyn Surroundings,
    snippets: BTreeMap<String, Vec<Word>>,
    parsed: Parsed,
    problems: &'a mut Vec<Problem>,
    words: usize,
}

/// A cursor over words.
struct Words {
    list: Vec<Word>,
    at: usize,
}

// === impl Words ===

impl Words {
    fn peek(&self) -> Option<&Word> {
        self.list.get(self.at)
    }

    fn next(&mut self) -> Option<Word> {
        let word = self.list.get(self.at).cloned();
        self.at += usize::from(word.is_some());
        word
    }

    /// The next word if it stands on the same line as the one before.
    fn next_on_line(&mut self, line: &Place) -> Option<Word> {
        let same = self.peek().is_some_and(|word| word.place == *line);
        if same { self.next() } else { None }
    }

    /// What is left up to the brace that closes a block which is open.
    fn up_to_close(&mut self) -> Option<Vec<Word>> {
        let mut depth = 0usize;
        for at in self.at..self.list.len() {
            let word = &self.list[at];
            if word.opens() {
                depth += 1;
            } else if word.closes() {
                if depth == 0 {
                    let inner = self.list[self.at..at].to_vec();
                    self.at = at + 1;
                    return Some(inner);
                }
                depth -= 1;
            }
        }
        None
    }
}

// === impl Reader ===

impl Reader<'_> {
    fn say(&mut self, place: &Place, plugin: &str, what: impl Into<String>, advice: &str) {
        self.problems.push(Problem::at(place, plugin, what).advise(advice));
    }

    fn file(&mut self, file: &Path, place: &Place) -> Option<Vec<Word>> {
        self.parsed.files.push(file.to_owned());
        match self.surroundings.read(file) {
            Ok(text) => {
                let name: Arc<str> = file.display().to_string().into();
                let variable = |name: &str| self.surroundings.variable(name);
                Some(words(&name, &text, &variable, self.problems))
            }
            Err(error) => {
                let what = format!("cannot read {}: {error}", file.display());
                self.say(place, "", what, "name a file that can be read");
                None
            }
        }
    }

    /// Server blocks and snippets.
    fn blocks(&mut self, list: Vec<Word>) {
        let mut words = Words { list, at: 0 };
        while let Some(first) = words.next() {
            if !first.quoted && first.text == "import" {
                let args = line_of(&mut words, &first.place);
                if let Some(imported) = self.import(&first, &args, 0) {
                    words.list.splice(words.at..words.at, imported);
                }
                continue;
            }
            if first.closes() || first.opens() {
                self.say(&first.place, "", format!("{:?} stands alone", first.text), "remove it");
                continue;
            }
            if let Some(name) = snippet_name(&first, &words) {
                words.next();
                match words.up_to_close() {
                    Some(inner) => drop(self.snippets.insert(name, inner)),
                    None => return self.say(&first.place, "", "the snippet does not end", "close it with }"),
                }
                continue;
            }
            let (keys, opened) = keys(first, &mut words);
            let inner = if opened {
                words.up_to_close()
            } else {
                // The braces may be left out when there is one block.
                Some(words.list.split_off(words.at))
            };
            let Some(inner) = inner else {
                let place = keys[0].place.clone();
                return self.say(&place, "", "the server block does not end", "close it with }");
            };
            let directives = self.directives(inner, 0);
            self.parsed.blocks.push(Block { keys, directives });
        }
    }

    fn directives(&mut self, list: Vec<Word>, depth: usize) -> Vec<Directive> {
        let mut words = Words { list, at: 0 };
        let mut found = Vec::new();
        while let Some(name) = words.next() {
            self.words += 1;
            if self.words > MAX_WORDS || depth > MAX_DEPTH {
                if self.words == MAX_WORDS + 1 || depth > MAX_DEPTH {
                    self.say(
                        &name.place,
                        "",
                        "too much is nested or imported",
                        "look for an import that repeats",
                    );
                }
                return found;
            }
            if name.closes() || name.opens() {
                self.say(&name.place, "", format!("{:?} stands alone", name.text), "remove it");
                continue;
            }
            let mut args = Vec::new();
            let mut line = name.place.clone();
            let mut body = Vec::new();
            while let Some(word) = words.next_on_line(&line) {
                if word.opens() {
                    match words.up_to_close() {
                        Some(inner) => body = self.directives(inner, depth + 1),
                        None => self.say(&word.place, &name.text, "the block does not end", "close it with }"),
                    }
                    break;
                }
                // A quoted word may end on a later line than it begins.
                line.line = word.place.line + word.text.matches('\n').count() as u32;
                args.push(word);
            }
            if !name.quoted && name.text == "import" {
                if let Some(imported) = self.import(&name, &args, depth) {
                    found.extend(self.directives(imported, depth + 1));
                }
                continue;
            }
            found.push(Directive { name, args, body });
        }
        found
    }

    /// The words of a snippet, a file or the files of a pattern.
    fn import(&mut self, at: &Word, args: &[Word], depth: usize) -> Option<Vec<Word>> {
        let Some(what) = args.first() else {
            self.say(
                &at.place,
                "import",
                "nothing is named",
                "name a snippet, a file or a pattern",
            );
            return None;
        };
        self.words += 1;
        if depth > MAX_DEPTH || self.words > MAX_WORDS || self.parsed.files.len() > 1000 {
            self.say(
                &at.place,
                "import",
                "too many imports",
                "look for an import that repeats",
            );
            return None;
        }
        if let Some(snippet) = self.snippets.get(&what.text) {
            self.words += snippet.len();
            return Some(snippet.iter().map(|word| with_args(word, &args[1..])).collect());
        }
        let folder = Path::new(&*at.place.file).parent().unwrap_or(Path::new(""));
        let pattern = folder.join(&what.text);
        let files = if what.text.contains('*') {
            self.surroundings.glob(&pattern)
        } else {
            vec![pattern]
        };
        let mut all = Vec::new();
        for file in files {
            let words = self.file(&file, &what.place)?;
            all.extend(words.iter().map(|word| with_args(word, &args[1..])));
        }
        self.words += all.len();
        Some(all)
    }
}

/// The words of the line that has begun.
fn line_of(words: &mut Words, line: &Place) -> Vec<Word> {
    std::iter::from_fn(|| words.next_on_line(line)).collect()
}

/// The keys of a server block, and whether a brace opens it.
fn keys(first: Word, words: &mut Words) -> (Vec<Word>, bool) {
    let mut keys = Vec::new();
    let mut next = Some(first);
    let mut line;
    while let Some(word) = next {
        line = word.place.clone();
        let more = word.text.ends_with(',');
        for part in word.text.split(',').filter(|part| !part.is_empty()) {
            keys.push(Word {
                text: part.to_owned(),
                ..word.clone()
            });
        }
        if words.peek().is_some_and(Word::opens) {
            words.next();
            return (keys, true);
        }
        next = if more { words.next() } else { words.next_on_line(&line) };
    }
    (keys, false)
}

/// `(name) {`
fn snippet_name(first: &Word, words: &Words) -> Option<String> {
    let name = first.text.strip_prefix('(')?.strip_suffix(')')?;
    words.peek().filter(|word| word.opens())?;
    Some(name.to_owned())
}

/// A word of a snippet with the arguments of its import: `{args[0]}`.
fn with_args(word: &Word, args: &[Word]) -> Word {
    let mut word = word.clone();
    if word.text.contains("{args[") {
        for (index, arg) in args.iter().enumerate() {
            word.text = word.text.replace(&format!("{{args[{index}]}}"), &arg.text);
        }
    }
    word
}
