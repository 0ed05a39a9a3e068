//! What a key may do: `device:GLOB[:ACTIONS]`, `account:ID[:ACTIONS]`, `admin`.

use relay_core::ids::{AccountId, AppName, DeviceId, Method};

use super::Action;

/// The most scopes of one key.
const MAX_SCOPES: usize = 64;
/// The longest scope, in bytes.
const MAX_SCOPE: usize = 1024;

/// A text that is no scope, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("scope {scope:?}: {words}")]
#[non_exhaustive]
pub struct InvalidScope {
    /// The text, or its beginning.
    pub scope: String,
    /// What is wrong with it.
    pub words: String,
}

/// The scopes of one key. None at all allow everything that a service can do, on every device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scopes(Vec<Scope>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Scope {
    Administrator,
    /// Folded to lower case.
    Device(Box<str>, Option<Vec<Allowed>>),
    Account(AccountId, Option<Vec<Allowed>>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Allowed {
    List,
    Method(Method),
    App(AppName),
}

impl Allowed {
    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("app/") {
            Some(name) => AppName::new(name).map(Self::App).map_err(|error| error.to_string()),
            None if text == "list" => Ok(Self::List),
            None => Method::new(text).map(Self::Method).map_err(|error| error.to_string()),
        }
    }

    fn covers(&self, action: Action<'_>) -> bool {
        match (self, action) {
            (Self::List, Action::List) => true,
            (Self::Method(allowed), Action::Method(method)) => allowed == method,
            (Self::App(allowed), Action::App(app)) => allowed == app,
            _ => false,
        }
    }
}

impl Scope {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "admin" {
            return Ok(Self::Administrator);
        }
        let mut parts = text.splitn(3, ':');
        let (kind, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let actions = match parts.next() {
            None => None,
            Some(actions) => Some(actions.split(',').map(Allowed::parse).collect::<Result<_, _>>()?),
        };
        match kind {
            "device" => {
                let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-*?".contains(&b);
                if name.is_empty() || !name.bytes().all(allowed) {
                    return Err("a device ID is needed after device:, in which * stands for any characters and ? for one".into());
                }
                Ok(Self::Device(name.to_ascii_lowercase().into(), actions))
            }
            "account" => Ok(Self::Account(AccountId::new(name).map_err(|error| error.to_string())?, actions)),
            _ => Err("is none of device:GLOB[:ACTIONS], account:ID[:ACTIONS], admin".into()),
        }
    }

    /// Whether it is about such a device, and what it then allows.
    fn on(&self, device: &DeviceId, accounts: &[AccountId]) -> Option<&Option<Vec<Allowed>>> {
        match self {
            Self::Administrator => Some(&None),
            Self::Device(glob, actions) => matches(glob, &device.folded()).then_some(actions),
            Self::Account(account, actions) => accounts.contains(account).then_some(actions),
        }
    }
}

impl Scopes {
    /// Reads `scopes`.
    ///
    /// # Errors
    /// [`InvalidScope`] for the first that is none.
    pub fn parse(scopes: &[String]) -> Result<Self, InvalidScope> {
        let invalid =
            |scope: &str, words: String| InvalidScope { scope: scope.chars().take(80).collect(), words };
        if let Some(scope) = scopes.get(MAX_SCOPES) {
            return Err(invalid(scope, format!("is one too many: a key has at most {MAX_SCOPES}")));
        }
        let parse = |scope: &String| match scope.len() > MAX_SCOPE {
            true => Err(invalid(scope, format!("is longer than {MAX_SCOPE} bytes"))),
            false => Scope::parse(scope).map_err(|words| invalid(scope, words)),
        };
        scopes.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether they hold `admin`.
    pub fn is_administrator(&self) -> bool {
        self.0.contains(&Scope::Administrator)
    }

    /// Whether some are by account: then what they allow depends on the accounts that a device counts for.
    pub fn name_accounts(&self) -> bool {
        self.0.iter().any(|scope| matches!(scope, Scope::Account(..)))
    }

    /// The account of which alone the key sees devices, if that is so.
    pub fn only_account(&self) -> Option<&AccountId> {
        let mut accounts = self.0.iter().map(|scope| match scope {
            Scope::Account(account, _) => Some(account),
            _ => None,
        });
        let first = accounts.next()??;
        accounts.all(|account| account == Some(first)).then_some(first)
    }

    /// Whether a device of that ID, which counts for `accounts`, exists for the key.
    pub fn see(&self, device: &DeviceId, accounts: &[AccountId]) -> bool {
        self.0.is_empty() || self.0.iter().any(|scope| scope.on(device, accounts).is_some())
    }

    /// Whether they allow `action` on that device.
    pub fn allows(&self, device: &DeviceId, accounts: &[AccountId], action: Action<'_>) -> bool {
        self.0.is_empty()
            || self.0.iter().filter_map(|scope| scope.on(device, accounts)).any(|allowed| match allowed {
                None => true,
                Some(allowed) => allowed.iter().any(|allowed| allowed.covers(action)),
            })
    }

    /// Whether they allow `action` for `account` as a whole; `None` if the account does not exist for the key.
    pub fn on_account(&self, account: &AccountId, action: Action<'_>) -> Option<bool> {
        if self.0.is_empty() || self.is_administrator() {
            return Some(true);
        }
        let mut allowed = self.0.iter().filter_map(|scope| match scope {
            Scope::Account(own, allowed) if own == account => {
                Some(allowed.as_ref().is_none_or(|allowed| allowed.iter().any(|one| one.covers(action))))
            }
            _ => None,
        });
        allowed.next().map(|first| first || allowed.any(|other| other))
    }

    /// Whether the key may say for `account` which devices belong to it.
    pub fn speak_for(&self, account: &AccountId) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|scope| matches!(scope, Scope::Account(own, None) if own == account))
    }
}

/// Whether `text` is what `glob` describes. Linear in both but for the last `*`, which alone is tried again.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    g = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(texts: &[&str]) -> Scopes {
        Scopes::parse(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn device(id: &str) -> DeviceId {
        DeviceId::new(id).unwrap()
    }

    #[test]
    fn x2_a_glob_matches_whole_ids_whatever_their_case() {
        for (glob, text, expected) in [
            ("*", "anything", true),
            ("prn-*", "prn-7", true),
            ("prn-*", "prn", false),
            ("prn-*", "aprn-7", false),
            ("*-7", "prn-7", true),
            ("*-7", "prn-77x", false),
            ("p?n*7*", "prn-1727", true),
            ("?", "", false),
            ("?", "a", true),
            ("a*b*c", "axxbyybzzc", true),
            ("a*b*c", "axxbyybzz", false),
            ("prn", "prn", true),
            ("prn", "prn7", false),
        ] {
            assert_eq!(matches(glob, text), expected, "{glob} on {text}");
        }
        assert!(scopes(&["device:PRN-*"]).see(&device("prn-1"), &[]));
        // A glob that would take a naive matcher for ever.
        assert!(!matches(&"*a".repeat(32), &"b".repeat(64)));
    }

    #[test]
    fn x2_scopes_allow_what_they_name_and_see_what_they_are_about() {
        let (get, set) = (Method::get(), Method::set());
        let (print, scan) = (AppName::new("print").unwrap(), AppName::new("scan").unwrap());
        let acme = [AccountId::new("ACME").unwrap()];
        let key = scopes(&["device:prn-*:GET,list,app/Print", "account:acme:SET"]);
        let prn = device("prn-1");
        assert!(key.allows(&prn, &[], Action::Method(&get)));
        assert!(key.allows(&prn, &[], Action::List));
        assert!(key.allows(&prn, &[], Action::App(&print)));
        assert!(!key.allows(&prn, &[], Action::App(&scan)));
        assert!(!key.allows(&prn, &[], Action::Method(&set)));
        assert!(key.allows(&prn, &acme, Action::Method(&set)));
        assert!(
            !key.allows(&prn, &[], Action::Method(&Method::new("get").unwrap())),
            "methods are compared exactly"
        );
        let other = device("scanner");
        assert!(!key.see(&other, &[]) && key.see(&other, &acme) && key.see(&prn, &[]));
        assert!(!key.allows(&other, &acme, Action::Method(&get)));
        assert!(key.name_accounts() && !key.is_administrator());

        let none = scopes(&[]);
        assert!(none.allows(&other, &[], Action::Method(&set)) && none.see(&other, &[]));
        assert!(!none.is_administrator(), "no scope is a service's, not an administrator's");
        assert!(scopes(&["admin"]).allows(&other, &[], Action::Method(&set)));
    }

    #[test]
    fn p1_a_key_speaks_for_an_account_that_it_has_without_limits() {
        let acme = AccountId::new("acme").unwrap();
        assert!(scopes(&["account:Acme"]).speak_for(&acme));
        assert!(scopes(&[]).speak_for(&acme));
        for other in ["account:acme:GET", "account:acme2", "device:*"] {
            assert!(!scopes(&[other]).speak_for(&acme), "{other}");
        }
    }

    #[test]
    fn x2_what_is_of_an_account_is_for_keys_that_name_it_or_nothing() {
        let (acme, app) = (AccountId::new("acme").unwrap(), AppName::new("address").unwrap());
        for (texts, expected) in [
            (&[][..], Some(true)),
            (&["admin"], Some(true)),
            (&["account:ACME"], Some(true)),
            (&["account:acme:GET", "account:acme:app/Address"], Some(true)),
            (&["account:acme:GET,app/print"], Some(false)),
            (&["account:other", "device:*"], None),
        ] {
            assert_eq!(scopes(texts).on_account(&acme, Action::App(&app)), expected, "{texts:?}");
        }
    }

    #[test]
    fn x2_a_key_of_one_account_is_known_as_such() {
        for (texts, only) in [
            (&["account:acme"][..], true),
            (&["account:acme:GET", "account:ACME:list"], true),
            (&["account:acme", "account:b"], false),
            (&["account:acme", "device:a"], false),
            (&["device:a"], false),
            (&[], false),
        ] {
            assert_eq!(scopes(texts).only_account().is_some(), only, "{texts:?}");
        }
    }

    #[test]
    fn x2_what_is_no_scope_is_refused_with_words() {
        for bad in [
            "",
            "Admin",
            "admin:",
            "device",
            "device:",
            "device:a/b",
            "device:a b",
            "account:",
            "account:*",
            "devices:*",
            "device:*:",
            "device:*:GET,",
            "device:*:G T",
            "device:*:app/",
            "account:a:app/a/b",
            "device:*:GET:SET",
        ] {
            let error = Scopes::parse(&[bad.to_owned()]).unwrap_err();
            assert_eq!(error.scope, bad);
            assert!(!error.words.is_empty());
        }
        assert!(Scopes::parse(&vec!["device:*".to_owned(); 65]).is_err());
        assert!(Scopes::parse(&["x".repeat(2000)]).unwrap_err().scope.len() <= 80);
    }
}
