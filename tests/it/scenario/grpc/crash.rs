//! A crash at each point of a called step's life: whoever asks again after the restart gets the one outcome, and the effect
//! happened once. C8 and C9 are about deliveries of a stream, which a call has none of.

use proto::v1::step_result::Status as Ended;

use super::*;
use crate::ledger::Ledger;

fn put(path: &str, content: &str) -> v1::StepRequest {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let inputs = Struct { fields: [("path".to_owned(), text(path)), ("content".to_owned(), text(content))].into() };
    v1::StepRequest { r#type: "fs.blob_put".into(), inputs: Some(inputs), ..echo(path) }
}

async fn survives(point: &str) -> Result<()> {
    let mut world = World::start(Settings::core()).await?;
    world.worker.kill();
    let mut ledger = Ledger::new(world.worker.dir());
    let path = format!("{point}.txt");
    world.worker.launch(&[("FAILPOINTS", &format!("{point}=return"))])?;
    world.worker.ready().await?;
    let mut stream = Stream::open(&mut world.client().await?).await?;
    stream.send(put(&path, "content")).await?;
    let mut said = Vec::new();
    while let Ok((_, update)) = stream.next().await {
        said.push(update);
    }
    world.worker.aborted(Duration::from_secs(15)).await.with_context(|| format!("{point} did not trip"))?;
    let early = matches!(point, "C0" | "C1");
    ensure!(!early || said.is_empty(), "told before it was durable, or was to be told: {said:?}");
    ledger.look()?;
    world.worker.restart().await?;
    let result = submit(&mut world.client().await?, put(&path, "content")).await?;
    ensure!(result.status() == Ended::Ok, "{result:?}");
    ensure!(!said.iter().any(|said| matches!(said, Said::Result(told) if *told != result)), "two outcomes: {said:?}");
    ledger.written_once("acme", &path, b"content")?;
    Ok(())
}

#[tokio::test]
async fn a_crash_at_any_point_leaves_one_outcome_for_whoever_asks_again() -> Result<()> {
    for point in ["C0", "C1", "C2", "C3", "C4", "C5", "C6", "C7"] {
        survives(point).await.with_context(|| point.to_owned())?;
    }
    Ok(())
}
