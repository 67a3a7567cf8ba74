//! The cluster over its client API: each question goes to one client URL after the other until somebody answers it. Plain HTTP only, as
//! that is all that is served.

use std::time::Duration;

use api::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    cluster_client::ClusterClient,
};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};
use types::MemberId;

use super::steps::Outside;

/// A member that runs takes a connection within milliseconds.
const CONNECTS_WITHIN: Duration = Duration::from_secs(2);

/// Longer than a member itself waits for a change to be committed (7 s by default).
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

pub struct Clients {
    urls: Vec<String>,
    /// Whose places these are not: the old member's, and those that are not up.
    own_peer_urls: Vec<String>,
    old: MemberId,
}

impl Clients {
    pub fn new(urls: Vec<String>, old: MemberId, own_peer_urls: Vec<String>) -> Clients {
        Clients { urls, own_peer_urls, old }
    }

    /// Asks at every URL in turn until somebody answers. Nobody is asked twice for one question: whether a change whose answer is lost was
    /// made shows in the list.
    async fn ask<T, F>(&self, call: impl Fn(ClusterClient<Channel>) -> F) -> Result<T, String>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut why = Vec::new();
        for url in &self.urls {
            let channel = match connect(url).await {
                Ok(channel) => channel,
                Err(error) => {
                    why.push(format!("{url}: {error}"));
                    continue;
                }
            };
            match tokio::time::timeout(ANSWERS_WITHIN, call(ClusterClient::new(channel))).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => why.push(format!("{url}: {}", status.message())),
                Err(_) => why.push(format!("{url}: no answer within {} s", ANSWERS_WITHIN.as_secs())),
            }
        }
        match why.is_empty() {
            true => Err("no other member says where it serves clients".to_owned()),
            false => Err(why.join("; ")),
        }
    }

    /// Whoever serves clients now, the members that were known before included: they may only be slow to publish.
    fn learn(&mut self, members: &[Member]) {
        let others = members.iter().filter(|member| {
            member.id != self.old.0
                && !member.is_learner
                && member.peer_ur_ls.iter().all(|url| !self.own_peer_urls.contains(url))
        });
        for url in others.flat_map(|member| &member.client_ur_ls) {
            if !self.urls.contains(url) {
                self.urls.push(url.clone());
            }
        }
    }

    pub async fn promote(&self, id: MemberId) -> Result<(), String> {
        self.ask(|mut client| async move { client.member_promote(MemberPromoteRequest { id: id.0 }).await })
            .await
            .map(drop)
    }
}

async fn connect(url: &str) -> Result<Channel, String> {
    if url.starts_with("https://") {
        return Err("is served with TLS, which is not spoken yet".to_owned());
    }
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| error.to_string())?;
    let channel = endpoint.connect_timeout(CONNECTS_WITHIN).connect().await;
    channel.map_err(|error| crate::refusal::chain(&error))
}

impl Outside for Clients {
    async fn list(&mut self) -> Result<Vec<Member>, String> {
        let request = MemberListRequest { linearizable: true };
        let members = self.ask(|mut client| async move { client.member_list(request).await }).await?.members;
        self.learn(&members);
        Ok(members)
    }

    async fn remove(&mut self, id: MemberId) -> Result<(), String> {
        let request = MemberRemoveRequest { id: id.0 };
        self.ask(|mut client| async move { client.member_remove(request).await }).await.map(drop)
    }

    async fn add_learner(&mut self, peer_urls: &[String]) -> Result<MemberId, String> {
        let request = MemberAddRequest { peer_ur_ls: peer_urls.to_vec(), is_learner: true };
        let answer = self
            .ask(|mut client| {
                let request = request.clone();
                async move { client.member_add(request).await }
            })
            .await?;
        answer.member.map(|member| MemberId(member.id)).ok_or_else(|| "the answer names no member".to_owned())
    }
}
