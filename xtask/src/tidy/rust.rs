//! As much of Rust's grammar as the rules need: code apart from comments and strings, tokens,
//! attributes, functions.
//!
//! Promises: strings (plain, byte, C and raw), character literals, lifetimes and nested comments are
//! told apart, so that a word in a string is never taken for code; offsets and lines are those of the
//! file. Not a parser: what a macro makes of its tokens is not seen.

/// A Rust file taken apart.
#[derive(Debug)]
pub(super) struct Rust<'a> {
    raw: &'a str,
    /// `raw` with spaces in place of comments and of what stands in quotes; line ends stay.
    code: String,
    /// `raw` with spaces in place of everything but comments; line ends stay.
    pub(super) comments: String,
}

/// A word, a number or one character of punctuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    /// Byte offset in the file.
    pub(super) at: usize,
}

/// A function with its body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    /// Line of the word `fn`, counted from 1.
    pub(super) line: usize,
    /// From that line to the closing brace.
    pub(super) lines: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Code,
    Comment,
    Quoted,
}

impl<'a> Rust<'a> {
    pub(super) fn new(raw: &'a str) -> Self {
        let mut layers = vec![Layer::Code; raw.len()];
        let bytes = raw.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let (end, layer) = piece(bytes, at);
            layers[at..end].fill(layer);
            at = end;
        }
        let keep = |wanted: Layer| -> String {
            let bytes = bytes.iter().zip(&layers).map(|(byte, layer)| match byte {
                b'\n' => b'\n',
                _ if *layer == wanted => *byte,
                _ => b' ',
            });
            String::from_utf8(bytes.collect()).expect("invariant: a piece never ends within a character")
        };
        let (code, comments) = (keep(Layer::Code), keep(Layer::Comment));
        Self { raw, code, comments }
    }

    /// The line of a byte offset, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.raw.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    pub(super) fn tokens(&self) -> Vec<Token<'_>> {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut tokens = Vec::new();
        let mut at = 0;
        while let Some(first) = self.code[at..].chars().next() {
            let rest = &self.code[at..];
            let length =
                if is_word(first) { rest.find(|c| !is_word(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
            if !first.is_whitespace() {
                tokens.push(Token { text: &rest[..length], at });
            }
            at += length;
        }
        tokens
    }

    /// What stands between the brackets of each attribute, inner and outer.
    pub(super) fn attributes<'t>(tokens: &'t [Token<'t>]) -> Vec<&'t [Token<'t>]> {
        let mut found = Vec::new();
        for start in 0..tokens.len() {
            let text = |index: usize| tokens.get(index).map_or("", |token| token.text);
            let open = start + 1 + usize::from(text(start + 1) == "!");
            if text(start) != "#" || text(open) != "[" {
                continue;
            }
            if let Some(close) = matching(tokens, open, "[", "]") {
                found.push(&tokens[open + 1..close]);
            }
        }
        found
    }

    /// Every function that has a body, nested ones too.
    pub(super) fn functions(&self) -> Vec<Function> {
        let tokens = self.tokens();
        let mut found = Vec::new();
        for (index, token) in tokens.iter().enumerate() {
            let Some(name) = tokens.get(index + 1) else {
                break;
            };
            // `fn(` is the type of a pointer to a function.
            if token.text != "fn" || name.text == "(" {
                continue;
            }
            let Some(open) = body(&tokens, index) else {
                continue;
            };
            let Some(close) = matching(&tokens, open, "{", "}") else {
                continue;
            };
            let line = self.line(token.at);
            found.push(Function { name: name.text.to_owned(), line, lines: self.line(tokens[close].at) - line + 1 });
        }
        found
    }
}

/// Index of the brace that opens the body of the function whose `fn` is at `start`; `None`: it has none.
fn body(tokens: &[Token<'_>], start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(start) {
        match token.text {
            "(" | "[" => depth += 1,
            ")" | "]" => depth = depth.saturating_sub(1),
            "{" if depth == 0 => return Some(index),
            ";" | "}" if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Index of the token that closes the one at `start`.
fn matching(tokens: &[Token<'_>], start: usize, open: &str, close: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(start) {
        if token.text == open {
            depth += 1;
        } else if token.text == close {
            depth -= 1;
            if depth == 0 {
                return Some(index);
            }
        }
    }
    None
}

/// Where the piece that begins at `at` ends, and what it is.
fn piece(bytes: &[u8], at: usize) -> (usize, Layer) {
    match bytes[at] {
        b'/' if bytes.get(at + 1) == Some(&b'/') => {
            let length = bytes[at..].iter().position(|byte| *byte == b'\n');
            (length.map_or(bytes.len(), |length| at + length), Layer::Comment)
        }
        b'/' if bytes.get(at + 1) == Some(&b'*') => (block_comment(bytes, at), Layer::Comment),
        b'"' => (quoted(bytes, at, b'"'), Layer::Quoted),
        b'\'' => match character(bytes, at) {
            Some(end) => (end, Layer::Quoted),
            None => (at + 1, Layer::Code),
        },
        byte if is_word_byte(byte) => {
            // The whole word at once, so that `r` in `for"` is not the start of a raw string.
            let length = bytes[at..].iter().position(|byte| !is_word_byte(*byte));
            let end = length.map_or(bytes.len(), |length| at + length);
            match &bytes[at..end] {
                b"r" | b"br" | b"cr" => raw_string(bytes, end).map_or((end, Layer::Code), |end| (end, Layer::Quoted)),
                _ => (end, Layer::Code),
            }
        }
        _ => (at + 1, Layer::Code),
    }
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

fn block_comment(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at < bytes.len() {
        match &bytes[at..bytes.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(bytes.len())
}

/// End of what begins with the quote at `start`; a backslash hides the byte after it.
fn quoted(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// End of the character literal whose quote is at `start`; `None`: a lifetime or a label.
fn character(bytes: &[u8], start: usize) -> Option<usize> {
    match *bytes.get(start + 1)? {
        b'\\' => Some(quoted(bytes, start, b'\'')),
        first => {
            let length = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            let end = start + 1 + length;
            (bytes.get(end) == Some(&b'\'')).then_some(end + 1)
        }
    }
}

/// End of the raw string whose `#`s or quote follow at `start`; `None`: a raw identifier.
fn raw_string(bytes: &[u8], start: usize) -> Option<usize> {
    let marks = bytes[start..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(start + marks) != Some(&b'"') {
        return None;
    }
    let mut at = start + marks + 1;
    while at < bytes.len() {
        let after = &bytes[at + 1..bytes.len().min(at + 1 + marks)];
        if bytes[at] == b'"' && after.len() == marks && after.iter().all(|byte| *byte == b'#') {
            return Some(at + 1 + marks);
        }
        at += 1;
    }
    Some(bytes.len())
}

#[cfg(test)]
mod tests;
