//! Messages of Protocol Buffers whose type is known while the program runs only: by a description, as `protoc` writes it.
//!
//! A message is read and written by its fields' names in the description, like an object of JSON: enums are the names of
//! their values, a `Timestamp` is a text of RFC 3339, `bytes` are base64.
//!
//! Invariant: bytes that are no message of the type, and records that do not fit it, are told with the reason.

use std::path::Path;

use prost_reflect::prost::Message as _;
use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::framing;
use crate::error::{Error, Result};

/// A type of messages, by its description.
#[derive(Clone, Debug)]
pub(crate) struct DescribedMessage {
    descriptor: MessageDescriptor,
    /// Path to the type in its file.
    indexes: Vec<u32>,
}

impl DescribedMessage {
    /// Returns the type of this full name in a file that `protoc --include_imports --descriptor_set_out` has written.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is no description, or lacks the type.
    pub(crate) fn of_file(path: &Path, name: &str) -> Result<DescribedMessage> {
        let failed = || Error::usage("the description of messages cannot be used").at(path.display());
        let help = "make it by protoc --include_imports --descriptor_set_out=FILE";
        let bytes = std::fs::read(path).map_err(|why| failed().caused_by(why))?;
        let pool = DescriptorPool::decode(&*bytes).map_err(|why| failed().because(why).help(help))?;
        let known = || {
            let names: Vec<_> = pool.all_messages().map(|message| message.full_name().to_owned()).collect();
            format!("there is no type {name}; its types are {}", names.join(", "))
        };
        let name = name.trim_start_matches('.');
        let descriptor = pool.get_message_by_name(name).ok_or_else(|| failed().because(known()))?;
        Ok(DescribedMessage::new(descriptor))
    }

    /// Returns the type of transactions, as `docs/transaction.proto` describes it.
    ///
    /// # Errors
    /// Never, unless the description here is wrong.
    pub(crate) fn transaction() -> Result<DescribedMessage> {
        let field = |(number, (name, kind)): (i32, (&str, Type))| FieldDescriptorProto {
            name: Some(name.into()),
            number: Some(number),
            label: Some(Label::Optional as i32),
            r#type: Some(kind as i32),
            ..FieldDescriptorProto::default()
        };
        let fields = [
            ("id", Type::Uint64),
            ("account", Type::String),
            ("merchant", Type::String),
            ("amount_cents", Type::Int64),
            ("currency", Type::String),
            ("at_ms", Type::Int64),
        ];
        let message = DescriptorProto {
            name: Some("Transaction".into()),
            field: (1..).zip(fields).map(field).collect(),
            ..DescriptorProto::default()
        };
        let file = FileDescriptorProto {
            name: Some("transaction.proto".into()),
            package: Some("tidegate".into()),
            message_type: vec![message],
            syntax: Some("proto3".into()),
            ..FileDescriptorProto::default()
        };
        let mut pool = DescriptorPool::new();
        let wrong = |why: String| Error::new("the description of transactions is wrong").because(why);
        pool.add_file_descriptor_proto(file).map_err(|why| wrong(why.to_string()))?;
        let descriptor = pool.get_message_by_name("tidegate.Transaction").ok_or_else(|| wrong("no type".into()))?;
        Ok(DescribedMessage::new(descriptor))
    }

    fn new(descriptor: MessageDescriptor) -> DescribedMessage {
        let mut indexes = Vec::new();
        let mut next = Some(descriptor.clone());
        while let Some(message) = next {
            next = message.parent_message();
            let same = |other: MessageDescriptor| other == message;
            let index = match &next {
                Some(parent) => parent.child_messages().position(same),
                None => message.parent_file().messages().position(same),
            };
            indexes.insert(0, index.and_then(|index| u32::try_from(index).ok()).unwrap_or_default());
        }
        DescribedMessage { descriptor, indexes }
    }

    /// Decodes a value. One that begins with a byte 0, as no message does, begins with the id of a schema and with message
    /// indexes, which have to name the type.
    ///
    /// # Errors
    /// Fails with the reason for rejecting the message.
    pub(crate) fn decode<T: DeserializeOwned>(&self, value: &[u8]) -> std::result::Result<T, String> {
        let mut bytes = value;
        if value.first() == Some(&0) {
            let (id, framed) = framing::split(value)?;
            let (indexes, rest) = framing::split_indexes(framed)?;
            if indexes != self.indexes {
                let name = self.descriptor.full_name();
                let expected = &self.indexes;
                return Err(format!("schema id {id}: type {indexes:?} of the schema, where {name} is {expected:?}"));
            }
            bytes = rest;
        }
        let name = self.descriptor.full_name();
        let message = DynamicMessage::decode(self.descriptor.clone(), bytes)
            .map_err(|why| format!("not a message of the type {name}: {why}"))?;
        let options = SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true);
        let fields = message.serialize_with_options(serde_json::value::Serializer, &options.skip_default_fields(false));
        let record = fields.and_then(serde_json::from_value);
        record.map_err(|why| format!("a message of the type {name} is no such record: {why}"))
    }

    /// Appends the message of a row, without a frame.
    ///
    /// # Errors
    /// Fails with the reason if the row does not fit the type.
    pub(crate) fn encode<D: Serialize>(&self, row: &D, value: &mut Vec<u8>) -> std::result::Result<(), String> {
        let options = DeserializeOptions::new().deny_unknown_fields(true);
        let message = serde_json::to_value(row)
            .and_then(|row| DynamicMessage::deserialize_with_options(self.descriptor.clone(), row, &options));
        let told = |why: String| format!("the row does not fit the type {}: {why}", self.descriptor.full_name());
        let message = message.map_err(|why| told(why.to_string()))?;
        message.encode(value).map_err(|why| told(why.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::FieldDescriptor;
    use prost_reflect::prost_types::FileDescriptorSet;
    use serde::Deserialize;

    use super::*;

    /// The transaction as generated code has it.
    #[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
    struct Generated {
        #[prost(uint64, tag = "1")]
        id: u64,
        #[prost(string, tag = "2")]
        account: String,
        #[prost(string, tag = "3")]
        merchant: String,
        #[prost(int64, tag = "4")]
        amount_cents: i64,
        #[prost(string, tag = "5")]
        currency: String,
        #[prost(int64, tag = "6")]
        at_ms: i64,
    }

    fn generated(rng: &mut fastrand::Rng) -> Generated {
        let text = |rng: &mut fastrand::Rng| ["", "ann", "名前", "a\"b"][rng.usize(..4)].to_owned();
        Generated {
            id: rng.u64(..) >> rng.u32(..64),
            account: text(rng),
            merchant: text(rng),
            amount_cents: rng.i64(..) >> rng.u32(..64),
            currency: text(rng),
            at_ms: rng.i64(..) >> rng.u32(..64),
        }
    }

    #[test]
    fn transactions_are_what_generated_code_reads_and_writes() {
        let described = DescribedMessage::transaction().unwrap();
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..500 {
            let row = generated(&mut rng);
            let mut bytes = Vec::new();
            described.encode(&row, &mut bytes).unwrap();
            assert_eq!(Generated::decode(&*bytes), Ok(row.clone()));
            assert_eq!(described.decode(&row.encode_to_vec()), Ok(row.clone()));
            let framed = [b"\0\0\0\0\x07\0", &*bytes].concat();
            assert_eq!(described.decode(&framed), Ok(row));
        }
        let why = described.decode::<Generated>(b"\0\0\0\0\x07\x02\x02").unwrap_err();
        assert_eq!(why, "schema id 7: type [1] of the schema, where tidegate.Transaction is [0]");
        let why = described.encode(&serde_json::json!({"id": 1, "other": 2}), &mut Vec::new()).unwrap_err();
        assert!(
            why.starts_with("the row does not fit the type tidegate.Transaction: ") && why.contains("other"),
            "{why}"
        );
    }

    #[test]
    fn transactions_are_what_the_documentation_describes() {
        let documented = include_str!("../../docs/transaction.proto");
        let fields = documented.lines().filter(|line| line.starts_with("  "));
        let fields: Vec<&str> = fields.map(|line| line.split(';').next().unwrap().trim()).collect();
        let described = DescribedMessage::transaction().unwrap().descriptor;
        let kind = |field: &FieldDescriptor| format!("{:?}", field.kind());
        let expected: Vec<String> =
            described.fields().map(|field| format!("{} {} = {}", kind(&field), field.name(), field.number())).collect();
        assert_eq!(fields, expected);
        assert!(documented.contains("package tidegate;") && documented.contains("message Transaction {"));
    }

    #[test]
    fn random_bytes_are_records_or_rejected() {
        let described = DescribedMessage::transaction().unwrap();
        let mut rng = fastrand::Rng::with_seed(6);
        for _ in 0..5_000 {
            let bytes: Vec<u8> = (0..rng.usize(..40)).map(|_| rng.u8(..)).collect();
            if let Err(why) = described.decode::<Generated>(&bytes) {
                assert!(!why.is_empty());
            }
        }
    }

    #[test]
    fn a_type_is_found_in_a_file_by_its_name_wherever_it_is() {
        let message = |name: &str, nested: Vec<DescriptorProto>| DescriptorProto {
            name: Some(name.into()),
            nested_type: nested,
            ..DescriptorProto::default()
        };
        let file = FileDescriptorProto {
            name: Some("a.proto".into()),
            package: Some("acme".into()),
            message_type: vec![message("A", Vec::new()), message("B", vec![message("C", Vec::new())])],
            syntax: Some("proto3".into()),
            ..FileDescriptorProto::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.desc");
        std::fs::write(&path, FileDescriptorSet { file: vec![file] }.encode_to_vec()).unwrap();
        for (name, indexes) in [("acme.A", &[0][..]), (".acme.B", &[1]), ("acme.B.C", &[1, 0])] {
            assert_eq!(DescribedMessage::of_file(&path, name).unwrap().indexes, indexes, "{name}");
        }
        let said = DescribedMessage::of_file(&path, "B").unwrap_err().to_string();
        assert!(said.ends_with("there is no type B; its types are acme.A, acme.B, acme.B.C"), "{said}");
        std::fs::write(&path, "syntax = \"proto3\";").unwrap();
        let said = DescribedMessage::of_file(&path, "acme.A").unwrap_err().to_string();
        assert!(said.contains("a.desc") && said.contains("; make it by protoc"), "{said}");
        let error = DescribedMessage::of_file(&folder.path().join("none"), "acme.A").unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
