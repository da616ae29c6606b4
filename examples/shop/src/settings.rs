//! What a service is told: by the environment at its start, by the settings file at each request.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where and who this instance is.
#[derive(Debug)]
pub struct Environment {
    /// `SHOP_LISTEN`: address to listen on.
    pub listen: String,
    /// `SHOP_VERSION`: set by the image.
    pub version: String,
    /// `POD_NAME`: which of several instances this is.
    pub pod: String,
    /// `SHOP_CATALOG`: URL of the catalog.
    pub catalog: String,
    /// `SHOP_CART`: URL of the cart.
    pub cart: String,
    /// `SHOP_SETTINGS`: the settings file.
    pub file: PathBuf,
}

/// The contents of the settings file, a ConfigMap's key in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What the front page says.
    pub greeting: String,
    /// Currency of all prices.
    pub currency: String,
    /// Percent off each price, 0 to 100.
    pub discount: u8,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is missing or not readable.
    #[error("cannot read the settings {0}: {1}; mount the ConfigMap or set SHOP_SETTINGS")]
    Read(String, std::io::Error),
    /// The file holds something else.
    #[error("the settings {0} are not understood: {1}")]
    Parse(String, serde_json::Error),
    /// A value is out of its range.
    #[error("the settings {0} want {1} % off; 0 to 100 are possible")]
    Discount(String, u8),
}

impl Environment {
    /// Reads the process's environment; what is not set takes the value that suits the manifests.
    pub fn from_process() -> Self {
        let get =
            |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        Self {
            listen: get("SHOP_LISTEN", "0.0.0.0:8080"),
            version: get("SHOP_VERSION", "dev"),
            pod: get("POD_NAME", "local"),
            catalog: get("SHOP_CATALOG", "http://catalog:8080"),
            cart: get("SHOP_CART", "http://cart:8080"),
            file: get("SHOP_SETTINGS", "/etc/shop/settings.json").into(),
        }
    }

    /// Reads the settings file anew, so that a change arrives without a restart.
    ///
    /// # Errors
    /// When it cannot be read or holds something else than settings.
    pub fn settings(&self) -> Result<Settings, Error> {
        let name = || self.file.display().to_string();
        let bytes = std::fs::read(&self.file).map_err(|e| Error::Read(name(), e))?;
        let settings: Settings =
            serde_json::from_slice(&bytes).map_err(|e| Error::Parse(name(), e))?;
        if settings.discount > 100 {
            return Err(Error::Discount(name(), settings.discount));
        }
        Ok(settings)
    }
}
