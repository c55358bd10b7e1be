//! What other programs reach, as a file states it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Figures of other programs on the same model and text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peers {
    /// The model, for the reader.
    pub model: Option<String>,
    /// How the figures were measured, for the reader.
    pub note: Option<String>,
    /// The figures.
    pub peers: Vec<Peer>,
}

/// One file of another program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// The program.
    pub program: String,
    /// The program's name for the type of the file.
    pub r#type: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Perplexity.
    pub ppl: Option<f64>,
    /// Mean divergence from the program's own run of the original weights, in nats per token.
    pub kld: Option<f64>,
    /// Its 95 % interval.
    pub kld_ci: Option<[f64; 2]>,
    /// 99.9th percentile of the divergence.
    pub kld_p999: Option<f64>,
    /// Share of tokens at which both find the same token likeliest.
    pub same_top1: Option<f64>,
    /// Speeds; empty when they were not measured.
    pub speed: Vec<PeerSpeed>,
    /// Where the figures are from.
    pub source: Option<String>,
}

/// Speed of a peer with one number of threads on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerSpeed {
    /// Threads.
    pub threads: usize,
    /// Tokens generated per second.
    pub decode_tok_s: Option<f64>,
    /// Tokens of the prompt processed per second.
    pub prefill_tok_s: Option<f64>,
    /// The machine: the CPU as the report's host names it if it is the same, else in words.
    pub device: String,
}

/// What is wrong with a file of peers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeersError {
    /// It is no JSON.
    #[error("not JSON: {0}")]
    Syntax(String),
    /// A field is missing, unknown, or has a value that it cannot have.
    #[error("{field}: {problem}")]
    Field {
        /// Where, e.g. `peers[3].bytes`.
        field: String,
        /// What is wrong.
        problem: String,
    },
}

impl Peers {
    /// Reads a document. Every field is named in errors, and one that is not known is an error.
    ///
    /// # Errors
    /// [`PeersError`], naming the field.
    pub fn parse(text: &str) -> Result<Self, PeersError> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| PeersError::Syntax(error.to_string()))?;
        let mut fields = Fields::new("", value)?;
        fields.optional::<u32>("schema_version")?;
        let model = fields.optional("model")?;
        let note = fields.optional("note")?;
        let list: Vec<Value> = fields.required("peers")?;
        fields.finish()?;
        let peers = list.into_iter().enumerate();
        let peers = peers.map(|(i, value)| Peer::parse(&format!("peers[{i}]"), value));
        Ok(Self { model, note, peers: peers.collect::<Result<_, _>>()? })
    }
}

impl Peer {
    fn parse(place: &str, value: Value) -> Result<Self, PeersError> {
        let mut fields = Fields::new(place, value)?;
        let speed: Option<Vec<Value>> = fields.optional("speed")?;
        let speed = speed.unwrap_or_default().into_iter().enumerate();
        let speed = speed.map(|(i, value)| PeerSpeed::parse(&format!("{place}.speed[{i}]"), value));
        let peer = Self {
            program: fields.required("program")?,
            r#type: fields.required("type")?,
            bytes: fields.required("bytes")?,
            ppl: fields.positive("ppl")?,
            kld: fields.positive("kld")?,
            kld_ci: fields.optional("kld_ci")?,
            kld_p999: fields.positive("kld_p999")?,
            same_top1: fields.positive("same_top1")?,
            speed: speed.collect::<Result<_, _>>()?,
            source: fields.optional("source")?,
        };
        fields.check(peer.bytes > 0, "bytes", "it is 0")?;
        let share = peer.same_top1.is_none_or(|share| share <= 1.0);
        fields.check(share, "same_top1", "a share is expected, at most 1")?;
        let around = peer.kld_ci.is_none_or(|[low, high]| {
            peer.kld.is_some_and(|kld| 0.0 <= low && low <= kld && kld <= high)
        });
        fields.check(around, "kld_ci", "[low, high] around `kld` is expected")?;
        fields.finish()?;
        Ok(peer)
    }

    /// How a report calls it.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.program, self.r#type)
    }
}

impl PeerSpeed {
    fn parse(place: &str, value: Value) -> Result<Self, PeersError> {
        let mut fields = Fields::new(place, value)?;
        let speed = Self {
            threads: fields.required("threads")?,
            decode_tok_s: fields.positive("decode_tok_s")?,
            prefill_tok_s: fields.positive("prefill_tok_s")?,
            device: fields.required("device")?,
        };
        fields.check(speed.threads > 0, "threads", "it is 0")?;
        fields.finish()?;
        Ok(speed)
    }

    /// Whether it was measured on a machine with this CPU, so that it may stand beside figures of it.
    pub(super) fn is_of(&self, cpu: Option<&str>) -> bool {
        cpu == Some(self.device.as_str())
    }
}

/// The fields of an object that are still to be looked at.
struct Fields {
    place: String,
    map: Map<String, Value>,
}

impl Fields {
    fn new(place: &str, value: Value) -> Result<Self, PeersError> {
        match value {
            Value::Object(map) => Ok(Self { place: place.into(), map }),
            _ => {
                let field = if place.is_empty() { "the document" } else { place };
                Err(PeersError::Field { field: field.into(), problem: "no object".into() })
            }
        }
    }

    fn wrong(&self, key: &str, problem: impl Into<String>) -> PeersError {
        let field =
            if self.place.is_empty() { key.into() } else { format!("{}.{key}", self.place) };
        PeersError::Field { field, problem: problem.into() }
    }

    fn optional<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, PeersError> {
        let Some(value) = self.map.remove(key) else { return Ok(None) };
        serde_json::from_value(value).map_err(|error| self.wrong(key, error.to_string()))
    }

    fn required<T: DeserializeOwned>(&mut self, key: &str) -> Result<T, PeersError> {
        self.optional(key)?.ok_or_else(|| self.wrong(key, "missing"))
    }

    fn positive(&mut self, key: &str) -> Result<Option<f64>, PeersError> {
        let value: Option<f64> = self.optional(key)?;
        self.check(value.is_none_or(|v| v > 0.0), key, "a number above 0 is expected")?;
        Ok(value)
    }

    fn check(&self, holds: bool, key: &str, problem: &str) -> Result<(), PeersError> {
        if holds { Ok(()) } else { Err(self.wrong(key, problem)) }
    }

    fn finish(self) -> Result<(), PeersError> {
        match self.map.keys().next() {
            Some(key) => Err(self.wrong(key, "unknown field")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_document_is_read() {
        let text = r#"{"schema_version": 1, "model": "m", "note": "n", "peers": [
            {"program": "p", "type": "Q4", "bytes": 7, "ppl": 2.5, "kld": 0.5, "kld_ci": [0.4, 0.6],
             "kld_p999": 3, "same_top1": 0.9, "source": "s",
             "speed": [{"threads": 2, "decode_tok_s": 10, "device": "d"}]},
            {"program": "p", "type": "Q8", "bytes": 9}]}"#;
        let peers = Peers::parse(text).expect("valid");
        assert_eq!(peers.peers[0].name(), "p Q4");
        assert_eq!(peers.peers[0].kld_ci, Some([0.4, 0.6]));
        assert!(peers.peers[0].speed[0].is_of(Some("d")));
        assert!(!peers.peers[0].speed[0].is_of(Some("e")) && !peers.peers[0].speed[0].is_of(None));
        assert_eq!(peers.peers[1].ppl, None);
        // What a report writes is read again.
        let written = serde_json::to_string(&peers).expect("JSON");
        assert_eq!(Peers::parse(&written), Ok(peers));
    }

    #[test]
    fn errors_name_the_field() {
        let peer = |fields: &str| {
            let text = format!(r#"{{"peers": [{{"program": "p", "type": "t", {fields}}}]}}"#);
            Peers::parse(&text).expect_err("invalid").to_string()
        };
        assert!(peer(r#""bytes": "7""#).starts_with("peers[0].bytes: invalid type"));
        assert_eq!(peer(r#""ppl": 2.0"#), "peers[0].bytes: missing");
        assert_eq!(peer(r#""bytes": 1, "kdl": 1"#), "peers[0].kdl: unknown field");
        assert!(
            peer(r#""bytes": 1, "same_top1": 97.0"#).starts_with("peers[0].same_top1: a share")
        );
        assert!(peer(r#""bytes": 1, "kld_ci": [0, 1]"#).starts_with("peers[0].kld_ci: "));
        assert!(peer(r#""bytes": 1, "kld": -1"#).starts_with("peers[0].kld: "));
        let speed = r#""bytes": 1, "speed": [{"threads": 1}]"#;
        assert_eq!(peer(speed), "peers[0].speed[0].device: missing");
        assert!(matches!(Peers::parse("[1"), Err(PeersError::Syntax(_))));
        assert_eq!(
            Peers::parse("[]").expect_err("no object").to_string(),
            "the document: no object"
        );
    }
}
