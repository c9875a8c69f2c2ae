//! TLS: who is let in.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::*;

/// An authority, which signs what it is told to.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Ok(Authority(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// A certificate for this name, and its key.
    fn sign(&self, name: &str) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.0)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

/// A worker that shows a certificate of `ours`, and asks for one of `theirs`.
async fn world(dir: &Path, ours: &Authority, theirs: Option<&Authority>) -> Result<World> {
    let (certificate, key) = ours.sign("localhost")?;
    let mut settings = Settings::core();
    let files = [("CERT", Some(certificate)), ("KEY", Some(key)), ("CLIENT_CA", theirs.map(Authority::pem))];
    for (name, text) in files {
        let Some(text) = text else { continue };
        let path = dir.join(name);
        std::fs::write(&path, text)?;
        settings = settings.set(&format!("ENDSTATION__GRPC__TLS__{name}"), &path.display().to_string());
    }
    World::start(settings).await
}

/// A client's own words after its handshake, or why there was none.
async fn call(world: &World, tls: ClientTlsConfig) -> Result<v1::StepResult> {
    let endpoint = Endpoint::try_from(format!("https://localhost:{}", world.port))?.tls_config(tls.domain_name("localhost"))?;
    let mut client = WorkerServiceClient::new(endpoint.connect().await?);
    Ok(submit(&mut client, echo("one")).await?)
}

fn trusting(authority: &Authority) -> ClientTlsConfig {
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()))
}

#[tokio::test]
async fn with_tls_a_client_that_knows_the_authority_is_served_and_a_plain_one_is_not() -> Result<()> {
    let (dir, ours) = (tempfile::tempdir()?, Authority::new()?);
    let world = world(dir.path(), &ours, None).await?;
    ensure!(call(&world, trusting(&ours)).await?.status() == v1::step_result::Status::Ok);
    ensure!(call(&world, trusting(&Authority::new()?)).await.is_err(), "a stranger's authority");
    let plain = Endpoint::try_from(format!("http://127.0.0.1:{}", world.port))?.connect().await;
    let served = match plain {
        Ok(channel) => submit(&mut WorkerServiceClient::new(channel), echo("two")).await.is_ok(),
        Err(_) => false,
    };
    ensure!(!served, "without TLS");
    ensure!(call(&world, trusting(&ours)).await.is_ok(), "it goes on");
    Ok(())
}

#[tokio::test]
async fn with_mtls_only_certificates_of_the_named_authority_are_let_in() -> Result<()> {
    let (dir, ours, theirs) = (tempfile::tempdir()?, Authority::new()?, Authority::new()?);
    let world = world(dir.path(), &ours, Some(&theirs)).await?;
    let showing = |(certificate, key): (String, String)| trusting(&ours).identity(Identity::from_pem(certificate, key));
    ensure!(call(&world, showing(theirs.sign("client")?)).await?.status() == v1::step_result::Status::Ok);
    ensure!(call(&world, showing(Authority::new()?.sign("client")?)).await.is_err(), "a certificate of somebody else's");
    ensure!(call(&world, showing(ours.sign("client")?)).await.is_err(), "a certificate of our own authority's");
    ensure!(call(&world, trusting(&ours)).await.is_err(), "no certificate");
    world.metric("worker_step_executions_total", |count| count == 1.0).await
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_an_error_at_the_start() -> Result<()> {
    let (dir, ours) = (tempfile::tempdir()?, Authority::new()?);
    let (certificate, key) = ours.sign("localhost")?;
    let (_, other_key) = ours.sign("localhost")?;
    let server = NatsServer::start(false).await?;
    let files = [("cert", &*certificate), ("key", &*key), ("other", &*other_key), ("junk", "junk")];
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text)?;
    }
    for (cert, key, said) in [
        ("missing", "key", "grpc.tls.cert"),
        ("cert", "missing", "grpc.tls.key"),
        ("junk", "key", "grpc.tls"),
        ("cert", "other", "grpc.tls"),
    ] {
        let path = |name: &str| dir.path().join(name).display().to_string();
        let settings = calls(Settings::core(), free_port())
            .set("ENDSTATION__GRPC__TLS__CERT", &path(cert))
            .set("ENDSTATION__GRPC__TLS__KEY", &path(key));
        let mut worker = Worker::stopped(&server.url(), settings)?;
        worker.launch(&[])?;
        let status = worker.ended(PATIENCE).await?;
        ensure!(status.code() == Some(3), "{cert}, {key}: {status}");
        ensure!(worker.log_text().contains(said), "{cert}, {key}: {}", worker.log_tail());
    }
    Ok(())
}
