//! The gpu lane as blocks see it: work is handed to the device group and its answer awaited; what it refuses becomes a fault that
//! says whether another try may help. Lives on its core.

use gpu::{Answer, Cancel, Client, Failure, Refusal, Work};
use shards::outcome::{Code, Fault};

use super::Reach;
use super::inputs::forbidden;

/// The device group, where there is one. Lives on its core.
#[derive(Clone)]
pub(super) struct Device(Option<Client>);

impl Device {
    pub(super) fn new(reach: &Reach) -> Self {
        Device(reach.device.clone())
    }

    /// Waits for the answer; whoever drops this no longer wants it.
    ///
    /// # Errors
    /// INVALID_INPUT for what no device takes, RESOURCE_UNAVAILABLE for what one may take later.
    pub(super) async fn compute(&self, work: Work) -> Result<Answer, Fault> {
        let Some(client) = &self.0 else {
            return Err(unavailable("This worker has no device of the class that the step needs.", "gpu.devices names none"));
        };
        let pending = client.submit(work, &Cancel::default()).map_err(|refusal| refused(&refusal))?;
        pending.wait().await.map_err(|failure| failed(&failure))
    }
}

fn refused(refusal: &Refusal) -> Fault {
    match refusal {
        Refusal::Invalid(why) => forbidden("", &why.to_string()),
        Refusal::TooLarge { .. } => forbidden("", &refusal.to_string()),
        Refusal::Jobs { .. } | Refusal::Bytes { .. } | Refusal::Down | Refusal::Closed => {
            unavailable("The device does not take the step now.", &refusal.to_string())
        }
    }
}

fn failed(failure: &Failure) -> Fault {
    unavailable("The device did not compute the step.", &failure.to_string())
}

fn unavailable(sentence: &'static str, cause: &str) -> Fault {
    Fault::new(Code::ResourceUnavailable, sentence).with_details(serde_json::json!({ "cause": cause }).to_string())
}
