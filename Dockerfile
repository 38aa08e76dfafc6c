# The service alone: one static binary on an image without a shell. Built with
#   docker build --build-arg VERSION=$(git describe --tags --always) -t switchyard .
FROM golang:1.26 AS build
WORKDIR /src
# The modules first: a change of our own code downloads nothing again.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false \
      -ldflags "-s -w -X main.version=${VERSION}" -o /out/server ./cmd/server
# The image below has no mkdir; the default SQLite file needs a folder of its user's.
RUN mkdir /out/data

FROM gcr.io/distroless/static-debian12:nonroot
ARG VERSION=dev
LABEL org.opencontainers.image.title="switchyard" \
      org.opencontainers.image.description="A WebSocket service that keeps every message" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /out/server /server
COPY --from=build --chown=nonroot:nonroot /out/data /data
WORKDIR /data
EXPOSE 8000
# /healthz speaks of the process alone: a database that is away is no reason to
# restart the service. Balancers ask /readyz instead.
HEALTHCHECK --interval=5s --timeout=3s --start-period=15s --retries=3 CMD ["/server", "healthcheck"]
ENTRYPOINT ["/server"]
CMD ["serve"]
