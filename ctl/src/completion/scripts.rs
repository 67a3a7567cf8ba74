//! The scripts that tie shells to `cairnctl __complete`, and the shape in which each shell wants the answer.
//!
//! The answer's first line is `files` (the shell completes a path), `open` (no blank after the word: it goes on) or `words`; then an offer on
//! each line, for zsh and fish with a tab and its explanation.

use super::{Offer, Offers};

pub const SHELLS: &[&str] = &["bash", "zsh", "fish", "powershell"];

const BASH: &str = r#"# Completion of cairnctl for bash. The offers come from cairnctl itself, keys and members from the cluster.
_cairnctl() {
    local kind='' line
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ -z $kind ]]; then kind=$line; else COMPREPLY+=("$line"); fi
    done < <(command "${COMP_WORDS[0]}" __complete -- bash "${COMP_LINE:0:COMP_POINT}" "${COMP_WORDS[COMP_CWORD]}" 2>/dev/null)
    case $kind in
        files) compopt -o default 2>/dev/null ;;
        open) compopt -o nospace 2>/dev/null ;;
    esac
}
complete -F _cairnctl cairnctl
"#;

const ZSH: &str = r#"#compdef cairnctl
# Completion of cairnctl for zsh. The offers come from cairnctl itself, keys and members from the cluster.
_cairnctl() {
    local -a lines words_only shown
    local kind line typed=$PREFIX
    # Behind an open single quote a backslash is one.
    [[ $compstate[quote] == "'" ]] || typed=${(Q)PREFIX}
    lines=("${(@f)$(command ${words[1]} __complete -- zsh "${(@Q)words[2,CURRENT-1]}" "$typed" 2>/dev/null)}")
    kind=${lines[1]}
    lines=("${(@)lines[2,-1]}")
    if [[ $kind == files ]]; then
        _files
        return
    fi
    for line in "${(@)lines}"; do
        [[ -z $line ]] && continue
        words_only+=("${line%%$'\t'*}")
        if [[ $line == *$'\t'* ]]; then
            shown+=("${line%%$'\t'*}  -- ${line#*$'\t'}")
        else
            shown+=("$line")
        fi
    done
    if [[ $kind == open ]]; then
        compadd -S '' -d shown -a words_only
    else
        compadd -d shown -a words_only
    fi
}
if [[ $funcstack[1] == _cairnctl ]]; then
    _cairnctl "$@"
else
    compdef _cairnctl cairnctl
fi
"#;

const FISH: &str = r#"# Completion of cairnctl for fish. The offers come from cairnctl itself, keys and members from the cluster.
function __cairnctl_offers
    set -l words (commandline -opc)
    # What the word means so far, without its quotes.
    set -l typed (string unescape -- (commandline -ct))
    set -l lines (command $words[1] __complete -- fish $words[2..-1] "$typed" 2>/dev/null)
    if test "$lines[1]" = files
        __fish_complete_path (commandline -ct)
    else if set -q lines[2]
        printf '%s\n' $lines[2..-1]
    end
end
complete -c cairnctl -f -a '(__cairnctl_offers)'
"#;

/// What a script says instead of its shell's name when it wants words alone.
pub const WORDS_ALONE: &str = "words";

/// The script of a shell; for powershell a list of verbs and flags that asks nobody. `None`: the shell is not known.
pub fn script(shell: &str, descriptions: bool) -> Option<Vec<u8>> {
    let text = |script: &str| {
        let plain =
            script.replace(&format!("__complete -- {shell} "), &format!("__complete -- {WORDS_ALONE} "));
        Some(if descriptions { script.into() } else { plain.into_bytes() })
    };
    match shell {
        // bash shows none anyway.
        "bash" => Some(BASH.into()),
        "zsh" => text(ZSH),
        "fish" => text(FISH),
        "powershell" => {
            let mut out = Vec::new();
            let mut command = crate::cli::command();
            clap_complete::generate(clap_complete::Shell::PowerShell, &mut command, "cairnctl", &mut out);
            Some(out)
        }
        _ => None,
    }
}

fn kind(offers: &Offers) -> &'static str {
    if offers.files {
        "files"
    } else if matches!(offers.offers.as_slice(), [only] if only.word.ends_with(['/', '='])) {
        "open"
    } else {
        "words"
    }
}

pub fn for_others(offers: &Offers) -> String {
    let mut out = format!("{}\n", kind(offers));
    for Offer { word, about } in &offers.offers {
        out += word;
        if !about.is_empty() {
            out.push('\t');
            out += about;
        }
        out.push('\n');
    }
    out
}

/// For bash, which knows only the part of the word after the last of its own breaks (`bash_word`) and replaces that part.
pub fn for_bash(offers: &Offers, word: &str, bash_word: &str) -> String {
    let (meant, quote) = meaning(bash_word);
    if quote.is_some_and(|quote| !bash_word.starts_with(quote) || bash_word[1..].contains(quote)) {
        // A quote that opens within the word, or again: where bash would put the rest is its secret, and what is quoted for one place may
        // be executed in another.
        return format!("{}\n", kind(&Offers::default()));
    }
    let known = word.len().saturating_sub(meant.len());
    let mut out = format!("{}\n", kind(offers));
    for offer in &offers.offers {
        let Some(rest) = offer.word.get(known..) else { continue };
        let Some(mut rest) = quoted(rest, quote) else { continue };
        // bash takes a quote at the end for the closing one.
        rest.extend(quote.filter(|quote| rest.ends_with(*quote)));
        out += &rest;
        out.push('\n');
    }
    out
}

/// What bash is to type for the text behind this open quote. Keys are anybody's: none may begin a command where it is put. `None`: there is
/// no way to say it.
fn quoted(text: &str, quote: Option<char>) -> Option<String> {
    match quote {
        None => Some(escaped(text)),
        Some('\'') => Some(text.replace('\'', "'\\''")),
        // A search in the history begins in these quotes too, and its backslash would stay.
        Some(_) if text.contains('!') => None,
        Some(_) => Some(text.chars().fold(String::new(), |mut out, c| {
            if matches!(c, '"' | '$' | '`' | '\\') {
                out.push('\\');
            }
            out.push(c);
            out
        })),
    }
}

/// What bash is to type for the text outside of quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() && !c.is_ascii_alphanumeric() && !"/_-.,:=@%+".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// What the part of a word means that bash knows, and the quote that is open at its end. A lone `:` or `=` is a break and no text.
fn meaning(word: &str) -> (String, Option<char>) {
    if matches!(word, ":" | "=") {
        return (String::new(), None);
    }
    let (mut out, mut quote) = (String::new(), None);
    let mut characters = word.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None | Some('"'), '\\') => out.extend(characters.next()),
            (_, c) => out.push(c),
        }
    }
    (out, quote)
}

/// The words of a line as a shell reads them, without the first, and the last as far as it is there. Only the line from the last command on
/// counts.
pub fn split(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut begun = false;
    let mut quote = None;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                begun = true;
            }
            (None | Some('"'), '\\') => {
                word.extend(characters.next());
                begun = true;
            }
            (None, ' ' | '\t' | '\n') => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (None, ';' | '|' | '&' | '(') => {
                words.clear();
                word.clear();
                begun = false;
            }
            (_, c) => {
                word.push(c);
                begun = true;
            }
        }
    }
    words.push(word);
    // Assignments before the command, and the command itself.
    let first = words.iter().position(|word| !word.contains('=')).unwrap_or(0);
    words.drain(..=first.min(words.len() - 1));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_as_a_shell_does() {
        for (line, words) in [
            ("cairnctl ", &[""][..]),
            ("cairnctl get k", &["get", "k"]),
            ("cairnctl get 'a b' \"c\\\"d\" e\\ f", &["get", "a b", "c\"d", "e f"]),
            ("cairnctl get \"/a", &["get", "/a"]),
            ("A=1 B=2 cairnctl get ", &["get", ""]),
            ("x | cairnctl get k", &["get", "k"]),
            ("cairnctl --endpoints=http://a:1 get ", &["--endpoints=http://a:1", "get", ""]),
        ] {
            assert_eq!(split(line), words, "{line:?}");
        }
    }

    #[test]
    fn bash_gets_the_part_of_the_word_that_it_knows() {
        let offers = |words: &[&str]| Offers {
            offers: words.iter().map(|word| Offer::new(*word, "")).collect(),
            files: false,
        };
        for (words, word, bash_word, expected) in [
            (&["/a/b", "/a/c"][..], "/a", "/a", "words\n/a/b\n/a/c\n"),
            (&["a:b"], "a:", ":", "words\nb\n"),
            (&["a:bc"], "a:b", "b", "words\nbc\n"),
            (&["--endpoints=http://h:1"], "--endpoints=http:", ":", "words\n//h:1\n"),
            (&["a b$c"], "a", "a", "words\na\\ b\\$c\n"),
            (&["a bc"], "a b", "a\\ b", "words\na\\ bc\n"),
            (&["a bc"], "a b", "'a b", "words\na bc\n"),
            (&["/k$(reboot)`x`;\"\\"], "/k", "\"/k", "words\n/k\\$(reboot)\\`x\\`;\\\"\\\\\n"),
            (&["/k'$(reboot)'"], "/k", "'/k", "words\n/k'\\''$(reboot)'\\'''\n"),
            (&["/k!1"], "/k", "\"/k", "words\n"),
            (&["/k\"v\""], "/k", "\"/k", "words\n/k\\\"v\\\"\"\n"),
            (&["/k'"], "/k", "'/k", "words\n/k'\\'''\n"),
            (&["/k$(x)`!~"], "/k", "/k", "words\n/k\\$\\(x\\)\\`\\!\\~\n"),
            (&["/k$(x)"], "/k", "'/'k", "words\n/k\\$\\(x\\)\n"),
            (&["/k$(x)"], "/k", "/\"k", "words\n"),
            (&["/k$(x)"], "/k", "'/'\"k", "words\n"),
            (&["/k$(x)"], "/k", "\"/\"\"k", "words\n"),
            (&["a:bc"], "a:b", "'b", "words\nbc\n"),
            (&["/dir/"], "/d", "/d", "open\n/dir/\n"),
        ] {
            assert_eq!(for_bash(&offers(words), word, bash_word), expected, "{word:?} {bash_word:?}");
        }
        assert_eq!(for_bash(&Offers { files: true, ..Default::default() }, "", ""), "files\n");
    }

    #[test]
    fn other_shells_get_explanations() {
        let offers = Offers { offers: vec![Offer::new("1f", "db1"), Offer::new("k", "")], files: false };
        assert_eq!(for_others(&offers), "words\n1f\tdb1\nk\n");
    }

    #[test]
    fn every_shell_has_a_script_that_asks_this_program() {
        for shell in SHELLS {
            assert!(!script(shell, true).unwrap().is_empty());
        }
        for shell in ["bash", "zsh", "fish"] {
            assert!(
                String::from_utf8(script(shell, true).unwrap())
                    .unwrap()
                    .contains(&format!("__complete -- {shell}"))
            );
        }
        for shell in ["zsh", "fish"] {
            let plain = String::from_utf8(script(shell, false).unwrap()).unwrap();
            assert!(plain.contains("__complete -- words ") && !plain.contains(&format!("-- {shell} ")));
        }
        assert_eq!(script("tcsh", true), None);
    }
}
