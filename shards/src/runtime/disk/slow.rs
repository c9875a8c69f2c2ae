//! A disk that is slow on purpose: `FAILPOINTS=slow-disk=return(MS)` lets every commit take so many milliseconds longer.

use std::time::Duration;

/// The wait before a commit's write.
pub(super) async fn wait() {
    let ms = (|| {
        fail::fail_point!("slow-disk", |ms| ms.and_then(|ms| ms.parse().ok()).unwrap_or(0));
        0
    })();
    if ms > 0 {
        glommio::timer::Timer::new(Duration::from_millis(ms)).await;
    }
}
