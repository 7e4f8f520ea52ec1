# rdev with what it needs at run time: git and CA certificates. It runs as user 10001, on a PostgreSQL that
# DATABASE_URL names (there is none in here), and writes to /var/lib/rdev and /tmp alone.
#
#   docker build -t rdev .                                   compiles it in the build
#   docker build -t rdev --build-arg BINARY=prebuilt .       takes target/release/rdev as it is
ARG BASE=docker.io/library/debian:bookworm-slim
ARG RUST=docker.io/library/rust:1.95-bookworm
ARG BINARY=built

FROM ${RUST} AS built
WORKDIR /src
COPY . .
RUN cargo build --release --locked && install -s target/release/rdev /rdev

FROM scratch AS prebuilt
COPY target/release/rdev /rdev

FROM ${BINARY} AS binary

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --home-dir /var/lib/rdev --create-home --shell /usr/sbin/nologin rdev
COPY --from=binary --chmod=0755 /rdev /usr/local/bin/rdev
USER 10001:10001
ENV HOME=/var/lib/rdev RDEV_DATA_DIR=/var/lib/rdev/data RDEV_LISTEN=0.0.0.0:8080
VOLUME /var/lib/rdev
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/${RDEV_LISTEN##*:} && printf 'GET /health/ready HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["rdev"]
CMD ["serve"]
