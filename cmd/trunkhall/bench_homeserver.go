package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/trunkhall/trunkhall/sfu/bench"
)

// What the homeserver bench does.
const (
	benchMembers = 50               // of the room, each with a long poll
	benchSenders = 8                // of them send at once
	benchSending = 10 * time.Second // for how long
	benchStarts  = 10               // starts that are timed
	benchSettle  = 10 * time.Second // after which an idle server's memory is read
)

// homeserverResult is what 'trunkhall bench homeserver' prints.
type homeserverResult struct {
	MessagesPerSecond  float64 `json:"messages_per_second"`
	DeliveredShare     float64 `json:"delivered_share"` // of messages that every long poll has seen
	SendP50Millis      float64 `json:"send_p50_ms"`
	SendP99Millis      float64 `json:"send_p99_ms"`
	InitialSyncMillis  float64 `json:"initial_sync_ms"`
	BusyRSSMegabytes   float64 `json:"busy_rss_mb"`
	StartToReadyMillis float64 `json:"start_to_ready_ms"`
	IdleRSSMegabytes   float64 `json:"idle_rss_mb"`
}

// benchHomeserver starts demo servers of this same program and measures them.
func benchHomeserver(ctx context.Context, exe string, log io.Writer) (homeserverResult, error) {
	var res homeserverResult
	var starts []float64
	for i := range benchStarts {
		d, err := launchDemo(ctx, exe)
		if err != nil {
			return res, err
		}
		starts = append(starts, float64(d.ready.Microseconds())/1000)
		if i == benchStarts-1 {
			fmt.Fprintf(log, "waiting %v to read an idle server's memory\n", benchSettle)
			time.Sleep(benchSettle)
			_, rss, err := bench.ProcessUsage(d.cmd.Process.Pid)
			if err != nil {
				return res, err
			}
			res.IdleRSSMegabytes = float64(rss) / (1 << 20)
		}
		d.stop()
	}
	slices.Sort(starts)
	res.StartToReadyMillis = (starts[benchStarts/2-1] + starts[benchStarts/2]) / 2
	fmt.Fprintf(log, "ready after %.0f ms (median of %d), idle at %.0f MB\n", res.StartToReadyMillis, benchStarts, res.IdleRSSMegabytes)

	d, err := launchDemo(ctx, exe)
	if err != nil {
		return res, err
	}
	defer d.stop()
	return res, benchMessages(ctx, d, &res, log)
}

// benchMessages fills a room with members that long-poll and lets some of them
// send as fast as the server answers.
func benchMessages(ctx context.Context, d *demoProcess, res *homeserverResult, log io.Writer) error {
	users := make([]*benchUser, benchMembers)
	for i := range users {
		u, err := d.register(ctx, fmt.Sprintf("bench%d", i))
		if err != nil {
			return fmt.Errorf("register: %w", err)
		}
		users[i] = u
	}
	var room struct {
		RoomID string `json:"room_id"`
	}
	if err := users[0].do(ctx, "POST", "/_matrix/client/v3/createRoom", map[string]any{"preset": "public_chat"}, &room); err != nil {
		return fmt.Errorf("create room: %w", err)
	}
	for _, u := range users[1:] {
		if err := u.do(ctx, "POST", "/_matrix/client/v3/join/"+url.PathEscape(room.RoomID), map[string]any{}, nil); err != nil {
			return fmt.Errorf("join: %w", err)
		}
	}
	fmt.Fprintf(log, "%d members joined\n", len(users))

	pollCtx, stopPolls := context.WithCancel(ctx)
	defer stopPolls()
	var polls sync.WaitGroup
	var seen atomic.Int64
	ready := make(chan error, len(users))
	for _, u := range users {
		polls.Go(func() { u.poll(pollCtx, room.RoomID, ready, &seen) })
	}
	for range users {
		if err := <-ready; err != nil {
			return fmt.Errorf("first sync: %w", err)
		}
	}

	sendCtx, cancel := context.WithTimeout(ctx, benchSending)
	defer cancel()
	var sent atomic.Int64
	var mu sync.Mutex
	var times []float64
	var failed error
	var senders sync.WaitGroup
	began := time.Now()
	for i := range benchSenders {
		senders.Go(func() {
			for n := 0; sendCtx.Err() == nil; n++ {
				t := time.Now()
				path := fmt.Sprintf("/_matrix/client/v3/rooms/%s/send/m.room.message/b%d-%d", url.PathEscape(room.RoomID), i, n)
				err := users[i].do(ctx, "PUT", path, map[string]any{"msgtype": "m.text", "body": "A line of the length that people write in a chat."}, nil)
				mu.Lock()
				if err != nil {
					failed = err
				}
				times = append(times, float64(time.Since(t).Microseconds())/1000)
				mu.Unlock()
				if err != nil {
					return
				}
				sent.Add(1)
			}
		})
	}
	senders.Wait()
	elapsed := time.Since(began)
	if failed != nil {
		return fmt.Errorf("send: %w", failed)
	}
	want := sent.Load() * int64(len(users))
	for deadline := time.Now().Add(20 * time.Second); seen.Load() < want && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
	}
	stopPolls()
	polls.Wait()

	slices.Sort(times)
	res.MessagesPerSecond = float64(sent.Load()) / elapsed.Seconds()
	res.DeliveredShare = float64(seen.Load()) / float64(want)
	res.SendP50Millis, res.SendP99Millis = times[len(times)/2], times[len(times)*99/100]
	_, rss, err := bench.ProcessUsage(d.cmd.Process.Pid)
	if err != nil {
		return err
	}
	res.BusyRSSMegabytes = float64(rss) / (1 << 20)
	t := time.Now()
	if err := users[0].do(ctx, "GET", "/_matrix/client/v3/sync?timeout=0", nil, nil); err != nil {
		return fmt.Errorf("initial sync: %w", err)
	}
	res.InitialSyncMillis = float64(time.Since(t).Microseconds()) / 1000
	return nil
}

// A demoProcess is a 'trunkhall demo' child with open registration and no rate
// limits.
type demoProcess struct {
	cmd   *exec.Cmd
	base  string
	ready time.Duration // from exec to the JSON line
}

func launchDemo(ctx context.Context, exe string) (*demoProcess, error) {
	cmd := exec.CommandContext(ctx, exe, "demo", "--json", "--listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "TRUNKHALL_HOMESERVER_RATE_LIMITS=false")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	d := &demoProcess{cmd: cmd, ready: time.Since(began)}
	if err != nil {
		d.stop()
		return nil, fmt.Errorf("the demo did not get ready: %w", err)
	}
	var told struct {
		Homeserver string `json:"homeserver"`
	}
	if err := json.Unmarshal(line, &told); err != nil {
		d.stop()
		return nil, fmt.Errorf("the demo's JSON line: %w", err)
	}
	d.base = told.Homeserver
	return d, nil
}

func (d *demoProcess) stop() {
	d.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(20*time.Second, func() { d.cmd.Process.Kill() })
	defer timer.Stop()
	d.cmd.Wait()
}

// A benchUser is one account of the bench.
type benchUser struct {
	base, token string
	client      *http.Client
}

func (d *demoProcess) register(ctx context.Context, name string) (*benchUser, error) {
	u := &benchUser{base: d.base, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}}}
	var reply struct {
		AccessToken string `json:"access_token"`
	}
	err := u.do(ctx, "POST", "/_matrix/client/v3/register", map[string]any{
		"username": name, "password": "bench-password-1", "auth": map[string]any{"type": "m.login.dummy"},
	}, &reply)
	u.token = reply.AccessToken
	return u, err
}

// poll long-polls until ctx ends; it says on ready when the first sync is done
// and counts the room's messages that arrive after it.
func (u *benchUser) poll(ctx context.Context, room string, ready chan<- error, seen *atomic.Int64) {
	since := ""
	filter := url.QueryEscape(`{"room":{"timeline":{"limit":1000}}}`) // see every message, however fast they come
	for first := true; ; first = false {
		path := "/_matrix/client/v3/sync?timeout=30000&filter=" + filter + "&since=" + url.QueryEscape(since)
		if first {
			path = "/_matrix/client/v3/sync?timeout=0"
		}
		var reply struct {
			NextBatch string `json:"next_batch"`
			Rooms     struct {
				Join map[string]struct {
					Timeline struct {
						Events []struct {
							Type string `json:"type"`
						} `json:"events"`
					} `json:"timeline"`
				} `json:"join"`
			} `json:"rooms"`
		}
		err := u.do(ctx, "GET", path, nil, &reply)
		if first {
			ready <- err
		}
		if err != nil {
			return
		}
		since = reply.NextBatch
		if first {
			continue
		}
		tl := reply.Rooms.Join[room].Timeline
		for _, e := range tl.Events {
			if e.Type == "m.room.message" {
				seen.Add(1)
			}
		}
	}
}

// do sends one request; a reply that is no 200 is an error.
func (u *benchUser) do(ctx context.Context, method, path string, body, reply any) error {
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.base+path, rd)
	if err != nil {
		return err
	}
	if u.token != "" {
		req.Header.Set("Authorization", "Bearer "+u.token)
	}
	resp, err := u.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status + ": " + string(b))
	}
	if reply == nil {
		return nil
	}
	return json.Unmarshal(b, reply)
}
