//! Flags of the control plane's programs, wherever they are written down: the arguments of a container, a manifest
//! of a static pod, a unit or an environment file of systemd.

/// A command line, or whatever holds one, as words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words(Vec<String>);

impl Words {
    /// The words of a text. Comments, quotes and the marks of YAML's lists and of continued lines are none.
    pub fn of_text(text: &str) -> Self {
        let mut words = Vec::new();
        for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let bare = line.replace(['"', '\'', '[', ']', '\\'], " ");
            let found = bare.split_whitespace().map(|word| word.trim_end_matches(','));
            words.extend(
                found
                    .filter(|word| !word.is_empty() && *word != "-")
                    .map(str::to_owned),
            );
        }
        Self(words)
    }

    /// The words of arguments, each of which may be a command line for a shell.
    pub fn of_args<'a>(args: impl IntoIterator<Item = &'a str>) -> Self {
        Self(args.into_iter().flat_map(|arg| Self::of_text(arg).0).collect())
    }

    /// The value of `--flag value` or `--flag=value`; of several, the last one counts, as the programs have it.
    pub fn flag(&self, flag: &str) -> Option<&str> {
        let mut values = self.0.iter().enumerate().filter_map(|(i, word)| {
            let value = match word.strip_prefix(flag)? {
                "" | "=" => self
                    .0
                    .get(i + 1)
                    .map(String::as_str)
                    .filter(|next| !next.starts_with('-'))?,
                value => value.strip_prefix('=')?,
            };
            Some(value)
        });
        values.next_back()
    }

    /// Whether one of the words is a program, by its path or by its name, and what follows it.
    pub fn runs(&self, program: &str, then: &str) -> bool {
        self.0.windows(2).any(|pair| {
            let name = pair[0].rsplit(['/', '=']).next();
            name == Some(program) && pair[1] == then
        })
    }
}
