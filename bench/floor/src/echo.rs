//! Sends every frame back: what the kernel and the event loop cost, and nothing else.

use anyhow::Result;

use crate::frame::Framed;

pub(crate) async fn serve(mut client: Framed) -> Result<()> {
    while let Some(frame) = client.receive().await? {
        client.send(&frame).await?;
    }
    Ok(())
}
