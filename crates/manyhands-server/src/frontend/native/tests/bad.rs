//! Bad input: whoever sends it is told what is wrong, and goes on.

use super::*;
use manyhands::wire::native::Op;

impl Client {
    async fn send_raw(&mut self, op: u8, flags: u8, queue: u16, count: u32, body: &[u8]) -> u32 {
        let route = self.route(queue);
        let len = u32::try_from(body.len()).unwrap();
        let mut bytes = BytesMut::new();
        Header { len, op, flags, route, count }.write(&mut bytes);
        bytes.extend_from_slice(body);
        self.send_bytes(&bytes).await;
        route.id
    }

    /// Sends bad input; says what it is told, and that the session goes on.
    async fn refused(&mut self, op: u8, queue: u16, count: u32, body: &[u8]) -> (Code, String) {
        let id = self.send_raw(op, 0, queue, count, body).await;
        let told = error(self.reply_to(id).await);
        assert!(matches!(self.ask(0, &Request::Ping).await, Reply::Done));
        told
    }
}

#[tokio::test]
async fn bad_input_is_answered_by_its_id_and_the_session_goes_on() {
    let rig = Rig::in_memory(&[("tasks", QueueOptions::default())]);
    let mut client = rig.client_of("tasks").await;
    let (put, get) = (Op::Put as u8, Op::Get as u8);
    assert_eq!(client.refused(0x7f, TASKS, 0, b"").await.0, Code::UnknownOp);
    assert_eq!(client.refused(Op::Done as u8, TASKS, 0, b"").await.0, Code::UnknownOp);
    assert_eq!(client.refused(put, TASKS, 1, b"").await.0, Code::Malformed);
    assert_eq!(client.refused(put, TASKS, 1, &[0; 9]).await.0, Code::Malformed);
    assert_eq!(client.refused(get, TASKS, 0, &[0; 9]).await.0, Code::Malformed);
    assert_eq!(client.refused(get, 9, 0, &[0; 24]).await.0, Code::NoSuchHandle);
    assert_eq!(client.refused(Op::Close as u8, 9, 0, b"").await.0, Code::NoSuchHandle);
    assert_eq!(client.refused(Op::Open as u8, TASKS, 0, b"other").await.0, Code::HandleInUse);
    assert_eq!(client.refused(Op::Open as u8, 5000, 0, b"other").await.0, Code::HandleInUse);
    assert_eq!(client.refused(Op::Open as u8, 2, 0, b"\xff").await.0, Code::Malformed);
    assert_eq!(client.refused(Op::Open as u8, 2, 0, b"").await.0, Code::Malformed);
    assert_eq!(client.refused(put, TASKS, 20_000, &[0; 8]).await.0, Code::TooLong);
    assert_eq!(client.refused(Op::TaskDone as u8, TASKS, 1, b"").await.0, Code::TooMany);
    assert_eq!(client.refused(Op::TaskDone as u8, TASKS, 1 << 20, b"").await.0, Code::TooLong);
    let told = client.ask(0, &Request::Drop { name: "none".into(), forced: false }).await;
    assert_eq!(error(told).0, Code::UnknownQueue);
    let told = client.ask(0, &Request::Drop { name: "tasks".into(), forced: false }).await;
    assert_eq!(error(told).0, Code::Refused);
    assert_eq!(client.put(Wait::No, &[number(1)]).await, (1, None));
}

#[tokio::test]
async fn an_item_that_is_malformed_keeps_those_before_it_out_too() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    let mut out = Outbound::default();
    let mut put = Request::begin_put(Wait::No, false, Route { queue: TASKS, id: 7 }, &mut out);
    numbers(3).iter().for_each(|item| put.item(item, None));
    put.finish().unwrap();
    let mut bytes = out.own().to_vec();
    let last = bytes.len() - 6;
    bytes[last] = b'?';
    client.send_bytes(&bytes).await;
    let (code, text) = error(client.reply_to(7).await);
    assert_eq!(code, Code::Malformed);
    assert!(text.starts_with("item 2: "), "{text}");
    assert_eq!(client.qsize().await, 0);
}

#[tokio::test]
async fn a_frame_that_is_too_long_is_passed_over() {
    let limits = Limits { frame_bytes_max: 100, ..Limits::default() };
    let rig = Rig::within(&[], limits);
    let mut client = rig.client_of("tasks").await;
    let put = client.send_raw(Op::Put as u8, 0, TASKS, 1, &vec![0; 100_000]).await;
    let ping = client.request(0, &Request::Ping).await;
    let (code, text) = error(client.reply_to(put).await);
    assert_eq!(code, Code::TooLong);
    assert!(text.contains("100000 bytes exceeds the limit of 100 bytes"), "{text}");
    assert!(matches!(client.reply_to(ping).await, Reply::Done));
}

#[tokio::test]
async fn an_id_in_flight_is_not_taken_twice() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    let get = client.request(TASKS, &Request::Get(leasing(Wait::Forever, 1))).await;
    let again = Route { queue: TASKS, id: get };
    client.send(TASKS, |_, out| Request::Size.push(again, out).unwrap()).await;
    assert_eq!(error(client.reply_to(get).await).0, Code::IdInUse);
    client.send_put(Wait::No, &[number(1)]).await;
    let mut ids = [client.reply().await.0, client.reply().await.0];
    ids.sort_unstable();
    assert_eq!(ids[0], get);
}

#[tokio::test]
async fn no_more_requests_wait_than_are_allowed() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    for _ in 0..connection::PENDING_MAX {
        client.request(TASKS, &Request::Get(leasing(Wait::Forever, 1))).await;
    }
    let told = client.ask(TASKS, &Request::Get(leasing(Wait::Forever, 1))).await;
    assert_eq!(error(told).0, Code::TooManyPending);
    assert_eq!(client.qsize().await, 0);
}

#[tokio::test]
async fn half_a_request_and_then_silence_ends_the_session() {
    tokio::time::pause();
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_of("tasks").await;
    client.send_bytes(&[3, 0, 0]).await;
    client.more().await;
    assert!(matches!(client.end, Some(Err(ConnectionError::Stalled(_)))), "{:?}", client.end);
}

#[tokio::test]
async fn who_speaks_no_version_of_ours_is_told_so() {
    let rig = Rig::in_memory(&[]);
    let mut hello = BytesMut::new();
    Hello { versions: 7..=9, reader: 5, name: String::new() }.write(&mut hello);
    let mut client = rig.connect(PIPE_LEN, hello);
    let Answer::Refused(text) = client.answer().await else { panic!("it is refused") };
    assert_eq!(text, "the client speaks versions 7 to 9 of the protocol, the server speaks 1");
    client.settle().await;
    assert!(matches!(client.end, Some(Ok(()))), "{:?}", client.end);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_served_further_and_is_cut_off_in_the_end() {
    tokio::time::pause();
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_over(1 << 10).await;
    let ping = |id| {
        let mut out = Outbound::default();
        Request::Ping.push(Route { queue: 0, id }, &mut out).unwrap();
        out.own().to_vec()
    };
    let requests: Vec<_> = (0..1000).flat_map(ping).collect();
    let mut sent = 0;
    let waker = std::task::Waker::noop();
    let mut context = Context::from_waker(waker);
    for _ in 0..100 {
        if let Poll::Ready(wrote) =
            Pin::new(&mut client.socket).poll_write(&mut context, &requests[sent..])
        {
            sent += wrote.unwrap();
        }
        assert!(client.server.as_mut().poll(&mut context).is_pending());
    }
    assert!(sent < 8 << 10, "{sent} bytes were read");
    let end = (&mut client.server).await;
    assert!(matches!(end, Err(ConnectionError::Stalled(_))), "{end:?}");
}

#[tokio::test]
async fn what_a_client_did_not_read_goes_back_when_it_is_gone() {
    let rig = Rig::in_memory(&[]);
    let mut client = rig.client_over(1 << 10).await;
    client.open(TASKS, "tasks").await;
    let large = Payload::bytes(&[7; 4000]).unwrap();
    client.put(Wait::No, &[large.clone(), large.clone()]).await;
    let get = Get { leased: false, ..leasing(Wait::No, 0) };
    client.request(TASKS, &Request::Get(get)).await;
    let waker = std::task::Waker::noop();
    assert!(client.server.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
    drop(client.socket);
    assert!(client.server.await.is_err());
    let mut other = rig.client_of("tasks").await;
    let tasks = other.lease(Wait::No, 0).await.unwrap();
    assert!(tasks.iter().all(|task| task.token.unwrap().attempt == 1));
    assert_eq!(tasks.len(), 2);
}
