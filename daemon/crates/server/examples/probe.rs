//! scratch
use api::etcdserverpb as pb;
use pb::{
    kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient, watch_request::RequestUnion,
};
use std::time::{Duration, Instant};
use tokio_stream::wrappers::ReceiverStream;
fn create(key: &str) -> pb::WatchRequest {
    pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: key.to_owned().into(),
            ..Default::default()
        })),
    }
}
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let ch = tonic::transport::Endpoint::from_shared(args[1].clone()).unwrap().connect().await.unwrap();
    let mut kv = KvClient::new(ch.clone());
    match args[2].as_str() {
        "halfclose" => {
            let (tx, rx) = tokio::sync::mpsc::channel(4);
            tx.send(create("a")).await.unwrap();
            let mut s =
                WatchClient::new(ch.clone()).watch(ReceiverStream::new(rx)).await.unwrap().into_inner();
            println!("{:?}", s.message().await);
            drop(tx);
            tokio::time::sleep(Duration::from_millis(500)).await;
            kv.put(pb::PutRequest { key: "a".into(), value: "1".into(), ..Default::default() })
                .await
                .unwrap();
            println!("{:?}", tokio::time::timeout(Duration::from_secs(2), s.message()).await);
            println!("{:?}", tokio::time::timeout(Duration::from_secs(2), s.message()).await);
        }
        "kahalf" => {
            let (tx, rx) = tokio::sync::mpsc::channel(4);
            tx.send(pb::LeaseKeepAliveRequest { id: 12345 }).await.unwrap();
            let mut s = LeaseClient::new(ch.clone())
                .lease_keep_alive(ReceiverStream::new(rx))
                .await
                .unwrap()
                .into_inner();
            println!("{:?}", s.message().await);
            drop(tx);
            println!("{:?}", tokio::time::timeout(Duration::from_secs(2), s.message()).await);
        }
        "empty" => {
            let (tx, rx) = tokio::sync::mpsc::channel(4);
            tx.send(pb::WatchRequest { request_union: None }).await.unwrap();
            tx.send(create("a")).await.unwrap();
            let mut s =
                WatchClient::new(ch.clone()).watch(ReceiverStream::new(rx)).await.unwrap().into_inner();
            println!("{:?}", s.message().await);
            tx.send(create(&"x".repeat(3_000_000))).await.unwrap();
            println!("oversize {:?}", tokio::time::timeout(Duration::from_secs(2), s.message()).await);
        }
        "hold" => {
            // watch and keepalive held until the server ends them
            let (tx, rx) = tokio::sync::mpsc::channel(4);
            tx.send(create("a")).await.unwrap();
            let hasleader = args.len() > 3;
            let mut rq = tonic::Request::new(ReceiverStream::new(rx));
            if hasleader {
                rq.metadata_mut().insert("hasleader", "true".parse().unwrap());
            }
            let mut s = WatchClient::new(ch.clone()).watch(rq).await.unwrap().into_inner();
            println!("{:?}", s.message().await);
            let (tx2, rx2) = tokio::sync::mpsc::channel(4);
            tx2.send(pb::LeaseKeepAliveRequest { id: 12345 }).await.unwrap();
            let mut rq = tonic::Request::new(ReceiverStream::new(rx2));
            if hasleader {
                rq.metadata_mut().insert("hasleader", "true".parse().unwrap());
            }
            let mut k = LeaseClient::new(ch.clone()).lease_keep_alive(rq).await.unwrap().into_inner();
            println!("{:?}", k.message().await);
            println!("ready");
            let since = Instant::now();
            let a = async {
                let m = s.message().await;
                println!("{:?} watch: {m:?}", since.elapsed());
            };
            let b = async {
                let m = k.message().await;
                println!("{:?} keepalive: {m:?}", since.elapsed());
            };
            tokio::join!(a, b);
        }
        other => panic!("{other}"),
    }
}
