//! Transactions as messages of Protocol Buffers, without a frame. They are built with the feature `protobuf`: without it
//! the library has its default features.

#[cfg(feature = "protobuf")]
mod built {
    use serde::{Deserialize, Serialize};
    use tidegate::{Transaction, kafka};

    use crate::kafka::drop_records;
    use crate::programs::RunParameters;
    use kit::RowChecksum;

    /// A transaction as a message.
    #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, prost::Message)]
    struct ProtobufTransaction {
        #[prost(uint64, tag = "1")]
        id: u64,
        #[prost(string, tag = "2")]
        account: String,
        #[prost(string, tag = "3")]
        merchant: String,
        #[prost(sint64, tag = "4")]
        amount_cents: i64,
        #[prost(string, tag = "5")]
        currency: String,
        #[prost(int64, tag = "6")]
        at_ms: i64,
    }

    pub(crate) fn encode(transaction: Transaction, out: &mut Vec<u8>) -> Result<(), String> {
        let Transaction { id, account, merchant, amount_cents, currency, at_ms } = transaction;
        let (account, merchant, currency) = (account.into(), merchant.into(), currency.into());
        let message = ProtobufTransaction { id, account, merchant, amount_cents, currency, at_ms };
        prost::Message::encode(&message, out).map_err(|why| why.to_string())
    }

    /// Parses a message whole, and returns its amount.
    pub(crate) fn parse_amount(value: &[u8]) -> Result<i64, String> {
        let message: ProtobufTransaction = prost::Message::decode(value).map_err(|why| why.to_string())?;
        Ok(std::hint::black_box(message).amount_cents)
    }

    /// Tidegate reading a topic and dropping the records.
    pub(crate) fn drop_tidegate(setting: &RunParameters, topic: &str) -> Result<RowChecksum, String> {
        let source = kafka::Source::new(&setting.brokers, topic, kafka::protobuf());
        drop_records(setting, source.event_time(|t: &ProtobufTransaction| t.at_ms), |t| t.amount_cents)
    }
}

#[cfg(not(feature = "protobuf"))]
mod built {
    use tidegate::Transaction;

    use crate::programs::RunParameters;
    use kit::RowChecksum;

    fn missing<T>() -> Result<T, String> {
        Err(String::from("built without the feature protobuf: cargo bench -p benches --features protobuf"))
    }

    pub(crate) fn encode(_transaction: Transaction, _out: &mut Vec<u8>) -> Result<(), String> {
        missing()
    }

    pub(crate) fn parse_amount(_value: &[u8]) -> Result<i64, String> {
        missing()
    }

    pub(crate) fn drop_tidegate(_setting: &RunParameters, _topic: &str) -> Result<RowChecksum, String> {
        missing()
    }
}

pub(crate) use built::{drop_tidegate, encode, parse_amount};
