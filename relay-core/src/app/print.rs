//! The print app's header: `<PrintJobRequest><Job>…</Job></PrintJobRequest>`.

use crate::xml::{Element, Limits, Namespace, XmlError};

/// What a print job says of itself before the document comes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PrintTicket {
    /// Who prints.
    pub user: Option<Box<str>>,
    /// What the job is called.
    pub job_name: Option<Box<str>>,
    /// The document's media type.
    pub content_type: Option<Box<str>>,
    /// What else the ticket says (copies, sides, media …), by name, in order.
    pub attributes: Vec<(Box<str>, Box<str>)>,
}

impl PrintTicket {
    /// The most attributes.
    pub const MAX_ATTRIBUTES: usize = 64;

    /// A ticket that says nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of the attribute `name`.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| &**known == name).map(|(_, value)| &**value)
    }

    /// Whether an attribute can bear `name`: `[A-Za-z_][A-Za-z0-9._-]{0,63}`, and not one of the ticket's own.
    pub fn is_name(name: &str) -> bool {
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        starts
            && name.len() <= 64
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && !matches!(name, "User" | "JobName" | "Type")
    }

    /// As the header of a job. Attributes whose name is none are left out.
    pub fn to_header(&self) -> Box<str> {
        let text = |name: &'static str, value: &str| Element::new(Namespace::NONE, name).with_text(value);
        let mut job = Element::new(Namespace::NONE, "Job");
        let known = [("User", &self.user), ("JobName", &self.job_name), ("Type", &self.content_type)];
        for (name, value) in known {
            if let Some(value) = value {
                job.push(text(name, value));
            }
        }
        for (name, value) in self.attributes.iter().filter(|(name, _)| Self::is_name(name)) {
            job.push(Element::new(Namespace::NONE, name.to_string()).with_text(&**value));
        }
        Element::new(Namespace::NONE, "PrintJobRequest").with_child(job).to_document().into_boxed_str()
    }

    /// Reads a header. What it does not know it passes over.
    ///
    /// # Errors
    /// [`XmlError`] if it is not one element within our limits.
    pub fn from_header(header: &str) -> Result<Self, XmlError> {
        let request = Element::parse(header.as_bytes(), &Limits::default())?;
        let mut ticket = Self::new();
        let jobs = request.children().filter(|child| child.name() == "Job");
        for element in jobs.flat_map(Element::children) {
            let value = || Some(element.text().into());
            match element.name() {
                "User" => ticket.user = value(),
                "JobName" => ticket.job_name = value(),
                "Type" => ticket.content_type = value(),
                name if ticket.attributes.len() < Self::MAX_ATTRIBUTES => {
                    ticket.attributes.push((name.into(), element.text().into()));
                }
                _ => {}
            }
        }
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_written_as_the_contract_shows_it_and_read_back() {
        let ticket = PrintTicket {
            user: Some("Ann <a&b>".into()),
            job_name: Some("Minutes".into()),
            content_type: Some("application/pdf".into()),
            attributes: vec![("copies".into(), "2".into()), ("media".into(), "A4".into())],
        };
        let header = ticket.to_header();
        assert!(
            header.starts_with(
                "<PrintJobRequest><Job><User>Ann &lt;a&amp;b&gt;</User><JobName>Minutes</JobName>"
            )
        );
        assert_eq!(PrintTicket::from_header(&header).unwrap(), ticket);
        assert_eq!(PrintTicket::from_header("<PrintJobRequest/>").unwrap(), PrintTicket::new());
        assert!(PrintTicket::from_header("no xml").is_err());
        for bad in ["", "1a", "a b", "a:b", "User", "<a>"] {
            assert!(!PrintTicket::is_name(bad), "{bad}");
        }
    }
}
