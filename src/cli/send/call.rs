//! The steps of a file over gRPC: one SubmitStream, and each update as it comes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message as _;
use proto::v1;
use proto::v1::step_update::Said;
use proto::v1::worker_service_client::WorkerServiceClient;
use serde_json::{Value, json};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::assignment::Assignment;
use super::heard::{Heard, Kind};
use super::{SendError, Told};
use crate::edge::protobuf;

/// Where to call, and with which certificates.
#[derive(Clone, Debug)]
pub struct Call {
    /// `http://` or `https://`, host and port.
    pub url: String,
    /// Who signs the worker's certificate (PEM).
    pub ca: Option<PathBuf>,
    /// Our own certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
}

/// Sends all and shows what is said; true if every step succeeded.
pub(super) async fn exchange(call: &Call, timeout: Duration, steps: &[Assignment]) -> Result<bool, SendError> {
    let mut requests = Vec::with_capacity(steps.len());
    for step in steps {
        let request = step.native.as_ref().and_then(|_| v1::StepRequest::decode(step.body.clone()).ok());
        requests.push(request.ok_or_else(|| SendError::NoStep(step.id.clone()))?);
    }
    let failed = |error: tonic::transport::Error| SendError::Call(call.url.clone(), chain(&error));
    let channel = endpoint(call)?.connect().await.map_err(failed)?;
    let mut told = Told::new(steps, io::IsTerminal::is_terminal(&io::stdout()));
    told.start([(call.url.as_str(), "gRPC".to_owned())])?;
    let said = async {
        // A result may be larger than what a client takes unasked.
        let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let mut updates = match client.submit_stream(futures_util::stream::iter(requests)).await {
            Ok(updates) => updates.into_inner(),
            Err(status) => return Ok(Some(status)),
        };
        loop {
            match updates.message().await {
                Ok(Some(update)) => {
                    if let Some((kind, id, message)) = shown(update) {
                        told.take(Heard::of(kind, id, message))?;
                    }
                }
                Ok(None) => return Ok(None),
                Err(status) => return Ok(Some(status)),
            }
        }
    };
    // What is missing when the time is up is said at the end.
    match tokio::time::timeout(timeout, said).await {
        Ok(Ok(Some(status))) => eprintln!("endstation send: {}: {}", status.code(), status.message()),
        Ok(Err(error)) => return Err(SendError::Write(error)),
        Ok(Ok(None)) | Err(_) => {}
    }
    told.end()
}

/// An update as `send` shows messages.
fn shown(update: v1::StepUpdate) -> Option<(Kind, String, Value)> {
    let id = update.assignment_id?;
    Some(match update.said? {
        Said::Accepted(_) => (Kind::Ack, id, json!({ "status": "accepted" })),
        Said::Result(result) => (Kind::Result, id, protobuf::result_json(&result)),
        Said::Refused(refused) => {
            let code = tonic::Code::from_i32(refused.code);
            let error = refused.error.as_ref().map(protobuf::error_json);
            (Kind::Result, id, json!({ "status": "REFUSED", "grpc": format!("{code:?}"), "error": error }))
        }
    })
}

fn endpoint(call: &Call) -> Result<Endpoint, SendError> {
    let failed = |error: tonic::transport::Error| SendError::Call(call.url.clone(), chain(&error));
    let endpoint = Endpoint::from_shared(call.url.clone()).map_err(failed)?.connect_timeout(Duration::from_secs(10));
    if !call.url.starts_with("https://") {
        return Ok(endpoint);
    }
    let pem = |path: &Path| std::fs::read(path).map_err(|error| SendError::File(path.display().to_string(), error));
    let mut tls = ClientTlsConfig::new();
    if let Some(ca) = &call.ca {
        tls = tls.ca_certificate(Certificate::from_pem(pem(ca)?));
    }
    if let (Some(cert), Some(key)) = (&call.cert, &call.key) {
        tls = tls.identity(Identity::from_pem(pem(cert)?, pem(key)?));
    }
    endpoint.tls_config(tls).map_err(failed)
}

/// An error with its causes: the first alone says only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
