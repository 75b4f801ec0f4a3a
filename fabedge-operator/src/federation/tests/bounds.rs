//! What a caller costs at most.

use super::*;

#[tokio::test]
async fn big_and_slow_callers_are_bounded() {
    let world = World::new().await;
    let beijing = world.member("beijing");
    let head = "PUT /api/cluster HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let declared = format!("{head}Content-Length: 104857600\r\n\r\n{}", "x".repeat(BODY));
    assert_eq!(
        world.raw(Some(&beijing), declared.as_bytes()).await.unwrap().0,
        413
    );
    let chunk = format!("{:x}\r\n{}\r\n", BODY, "x".repeat(BODY));
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}{chunk}");
    assert_eq!(
        world.raw(Some(&beijing), chunked.as_bytes()).await.unwrap().0,
        413
    );
    let long = format!("GET /api/cidrs HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(1 << 20));
    let (status, _) = world
        .raw(Some(&beijing), long.as_bytes())
        .await
        .unwrap_or((431, String::new()));
    assert_eq!(status, 431);

    // Many who say nothing, each beyond what there is room for without a certificate.
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(TcpStream::connect(world.address).await.unwrap());
    }
    let mut half = Vec::new();
    for _ in 0..70 {
        let Ok(mut stream) = world.connect(None).await else {
            continue;
        };
        stream.write_all(b"GET /api/ca-cert HT").await.ok();
        half.push(stream);
    }
    assert_eq!(world.call(Some(&beijing), "GET /api/cidrs", "", "").await.0, 200);
    let began = Instant::now();
    let gone = tokio::time::timeout(Duration::from_secs(20), async {
        let mut byte = [0];
        for stream in &mut silent {
            assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)));
        }
        for stream in &mut half {
            while !matches!(stream.read(&mut byte).await, Ok(0) | Err(_)) {}
        }
    });
    gone.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(15));
    assert_eq!(
        world.call(None, "GET /api/ca-cert", "", "").await.0,
        200,
        "there is room again"
    );
}
