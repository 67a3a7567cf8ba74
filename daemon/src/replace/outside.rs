//! The cluster over its client API: each question goes to one client URL after the other until somebody answers it. Plain HTTP only, as
//! that is all that is served.

use std::time::Duration;

use ::identity::{Answer, Question, Unique};
use api::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    cluster_client::ClusterClient,
};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};
use types::{ClusterId, MemberId};

use super::{
    journal::{Journal, Other},
    steps::Outside,
};
use crate::{
    bootstrap::{
        attend::Heard,
        hello::{self, Target},
    },
    refusal::Refusal,
};

/// A member that runs takes a connection within milliseconds.
const CONNECTS_WITHIN: Duration = Duration::from_secs(2);

/// Longer than a member itself waits for a change to be committed (7 s by default).
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

pub struct Clients {
    urls: Vec<String>,
    /// Whose places these are not: the old member's, and those that are not up.
    own_peer_urls: Vec<String>,
    old: MemberId,
    life: Option<Life>,
}

/// The life of the cluster in which the old member was lost, and who can tell.
struct Life {
    question: Question,
    peers: Vec<Target>,
    cluster: ClusterId,
    uuid: Option<Unique>,
}

impl Clients {
    pub fn new(others: &[Other], old: MemberId, own_peer_urls: &[String]) -> Clients {
        let urls = others.iter().flat_map(|other| other.client_urls.iter().cloned()).collect();
        Clients { urls, own_peer_urls: own_peer_urls.to_vec(), old, life: None }
    }

    /// Before anything is changed, somebody must say that this is still the cluster it was: addresses are used again, and clusters restored.
    pub fn of_life(mut self, journal: &Journal) -> Result<Clients, Refusal> {
        let question = super::nobody(journal.cluster_id, &journal.name)
            .map_err(|error| Refusal::io("ask for", "random numbers".as_ref(), &error))?;
        let peers = journal.others.iter().flat_map(|other| {
            let at = |url: &String| Target { member: other.id, name: other.name.clone(), url: url.clone() };
            other.peer_urls.iter().map(at)
        });
        let (cluster, uuid) = (journal.cluster_id, journal.cluster_uuid);
        let question = Question { hello: question, config: None };
        self.life = Some(Life { question, peers: peers.collect(), cluster, uuid });
        Ok(self)
    }

    async fn same_life(&self) -> Result<(), String> {
        let Some(life) = &self.life else { return Ok(()) };
        let replies = hello::round(&life.peers, &life.question).await;
        let mut answers = replies.iter().filter_map(|reply| match &reply.heard {
            Heard::Answer(answer) => Some((&reply.url, answer)),
            _ => None,
        });
        let differs = |answer: &Answer| {
            answer.hello.cluster_id != life.cluster
                || (life.uuid.is_some()
                    && answer.known.cluster_uuid.is_some_and(|uuid| Some(uuid) != life.uuid))
        };
        match answers.clone().find(|(_, answer)| differs(answer)) {
            Some((url, _)) => Err(format!(
                "{url} is of another cluster, or of another life of it, than the member that was lost"
            )),
            None if answers.next().is_none() => Err("no other member answers at its peer URL".to_owned()),
            None => Ok(()),
        }
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
        self.same_life().await?;
        let request = MemberListRequest { linearizable: true };
        let answer = self.ask(|mut client| async move { client.member_list(request).await }).await?;
        let cluster = ClusterId(answer.header.map_or(0, |header| header.cluster_id));
        if let Some(life) = self.life.as_ref().filter(|life| life.cluster != cluster) {
            return Err(format!("the members are of cluster {cluster}, not {}", life.cluster));
        }
        self.learn(&answer.members);
        Ok(answer.members)
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
