//! A peer's addresses. One is in use until it fails, then the next.

use parking_lot::RwLock;
use url::Url;

pub(crate) struct Urls(RwLock<Inner>);

struct Inner {
    urls: Vec<Url>,
    picked: usize,
}

impl Urls {
    pub(crate) fn new(urls: Vec<Url>) -> Self {
        Urls(RwLock::new(Inner { urls, picked: 0 }))
    }

    pub(crate) fn replace(&self, urls: Vec<Url>) {
        let mut inner = self.0.write();
        if inner.urls != urls {
            *inner = Inner { urls, picked: 0 };
        }
    }

    /// The address in use.
    pub(crate) fn pick(&self) -> Option<Url> {
        let inner = self.0.read();
        inner.urls.get(inner.picked).cloned()
    }

    /// This address does not work. Only the first to say so moves on.
    pub(crate) fn failed(&self, url: &Url) {
        let mut inner = self.0.write();
        if inner.urls.get(inner.picked) == Some(url) {
            inner.picked = (inner.picked + 1) % inner.urls.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_address_is_left_once() {
        let [a, b]: [Url; 2] = ["http://a:1", "http://b:1"].map(|text| text.parse().expect("a URL"));
        let urls = Urls::new(vec![a.clone(), b.clone()]);
        urls.failed(&a);
        urls.failed(&a);
        assert_eq!(urls.pick(), Some(b.clone()));
        urls.failed(&b);
        assert_eq!(urls.pick(), Some(a));
        urls.replace(vec![]);
        assert_eq!(urls.pick(), None);
        urls.failed(&b);
    }
}
