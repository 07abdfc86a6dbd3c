package phones

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// PhoneOptions say what kind of telephone to start. The zero value is one at
// 127.0.0.1 that speaks G.711 over UDP, says nothing and answers by itself.
type PhoneOptions struct {
	Name      string // in logs; also the user part of its address unless User is given
	User      string
	Domain    string // of its address; empty: where it listens
	IP        string // empty: 127.0.0.1
	Port      int    // 0: any free one
	Says      Sound  // empty: silence. It hangs up when it has nothing more to say
	Codecs    string // as baresip writes them; empty: PCMU/8000/1
	Transport string // udp, tcp, tls; empty: udp
	Encrypt   string // srtp, srtp-mand, dtls_srtp; empty: none
	Manual    bool   // does not answer until told to
	Registrar string // host:port of a registrar that is also its outbound proxy
	Username  string
	Password  string
	Expires   int
	Account   string // further parameters of the account, each with its ;
	Config    string // further lines of the configuration
	CertFile  string // TLS: own certificate and key
	CAFile    string // TLS: whom to believe
	Seconds   int    // stops by itself; 0: 180
}

// A Phone is one running baresip.
type Phone struct {
	*program
	Options PhoneOptions
	Port    int

	dir     string
	control net.Conn

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when something below changes
	events  []PhoneEvent
	answers map[string]phoneAnswer
	tokens  int
}

// A PhoneEvent is something that a phone told of itself.
type PhoneEvent struct {
	Type      string `json:"type"` // CALL_RINGING, CALL_ESTABLISHED, CALL_CLOSED, REGISTER_OK, ...
	Direction string `json:"direction"`
	Peer      string `json:"peeruri"`
	ID        string `json:"id"`
	Param     string `json:"param"`
}

type phoneAnswer struct {
	OK   bool   `json:"ok"`
	Data string `json:"data"`
}

// StartPhone starts a phone, which runs until the test ends.
func StartPhone(t testing.TB, o PhoneOptions) *Phone {
	t.Helper()
	o.IP = or(o.IP, "127.0.0.1")
	o.User = or(o.User, o.Name)
	o.Codecs = or(o.Codecs, "PCMU/8000/1")
	o.Transport = or(o.Transport, "udp")
	if o.Seconds == 0 {
		o.Seconds = 180
	}
	if o.Port == 0 {
		o.Port = FreePort(t, o.IP)
	}
	p := &Phone{Options: o, dir: t.TempDir(), Port: o.Port, changed: make(chan struct{}), answers: map[string]phoneAnswer{}}
	if p.Options.Domain == "" {
		p.Options.Domain = net.JoinHostPort(o.IP, strconv.Itoa(p.Port))
	}
	control := net.JoinHostPort("127.0.0.1", strconv.Itoa(FreePort(t, "127.0.0.1")))
	p.configure(t, control)
	p.program = start(t, "phone "+o.Name, p.dir, "baresip", "-f", p.dir, "-t", strconv.Itoa(o.Seconds))
	eventually(t, 30*time.Second, "phone "+o.Name+" starts", func() (err error) {
		select {
		case <-p.done:
			t.Fatalf("phone %s ended by itself: %v", o.Name, p.err)
		default:
		}
		p.control, err = net.Dial("tcp", control)
		return err
	})
	go p.listen()
	t.Cleanup(func() { p.control.Close() })
	return p
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

func (p *Phone) configure(t testing.TB, control string) {
	t.Helper()
	o := p.Options
	says := o.Says
	if len(says.Samples) == 0 {
		says = Sound{48_000, make([]float64, 100*48_000)}
	}
	source := filepath.Join(p.dir, "says.wav")
	if err := says.WriteWAV(source); err != nil {
		t.Fatal(err)
	}
	rtp := FreePorts(t, o.IP, 18)
	listen := net.JoinHostPort(o.IP, strconv.Itoa(p.Port))
	if o.Transport == "tls" {
		listen = net.JoinHostPort(o.IP, strconv.Itoa(p.Port-1)) // baresip takes the next port for TLS
	}
	lines := []string{
		"poll_method epoll",
		"sip_listen " + listen,
		"net_interface " + o.IP,
		"audio_source aufile," + source,
		"audio_player aubridge,sink",
		"audio_alert aubridge,alert",
		"ausrc_srate 48000",
		"auplay_srate 48000",
		"ausrc_channels 1",
		"auplay_channels 1",
		"ausrc_format s16",
		"auplay_format s16",
		fmt.Sprintf("rtp_ports %d-%d", rtp, rtp+16),
		"jitter_buffer_type fixed",
		"jitter_buffer_delay 1-5",
		"module_path /usr/lib/baresip/modules",
		"module opus.so",
		"module g722.so",
		"module g711.so",
		"module aufile.so",
		"module sndfile.so",
		"module aubridge.so",
	}
	switch {
	case strings.HasPrefix(o.Encrypt, "srtp"):
		lines = append(lines, "module srtp.so")
	case o.Encrypt == "dtls_srtp":
		lines = append(lines, "module dtls_srtp.so")
	}
	if o.CertFile != "" {
		lines = append(lines, "sip_certificate "+o.CertFile)
	}
	if o.CAFile != "" {
		lines = append(lines, "sip_cafile "+o.CAFile)
	}
	lines = append(lines,
		"snd_path "+p.dir,
		"module_tmp uuid.so",
		"module_tmp account.so",
		"module_app menu.so",
		"module_app ctrl_tcp.so",
		"ctrl_tcp_listen "+control,
		o.Config,
	)
	file(t, p.dir, "config", strings.Join(lines, "\n")+"\n")
	file(t, p.dir, "contacts", "")

	account := fmt.Sprintf("<sip:%s@%s;transport=%s>;audio_codecs=%s", o.User, p.Options.Domain, o.Transport, o.Codecs)
	if !o.Manual {
		account += ";answermode=auto"
	}
	if o.Encrypt != "" {
		account += ";mediaenc=" + o.Encrypt
	}
	if o.Registrar != "" {
		expires := o.Expires
		if expires == 0 {
			expires = 60
		}
		account += fmt.Sprintf(`;auth_user=%s;auth_pass=%s;outbound="sip:%s;transport=%s;lr";regint=%d`, o.Username, o.Password, o.Registrar, o.Transport, expires)
	} else {
		account += ";regint=0"
		if o.Username != "" {
			account += fmt.Sprintf(";auth_user=%s;auth_pass=%s", o.Username, o.Password)
		}
	}
	file(t, p.dir, "accounts", account+o.Account+"\n")
}

// listen reads what the phone tells: JSON in netstrings.
func (p *Phone) listen() {
	in := bufio.NewReader(p.control)
	for {
		size, err := in.ReadString(':')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(size, ":"))
		if err != nil {
			return
		}
		b := make([]byte, n+1) // and the comma
		if _, err := io.ReadFull(in, b); err != nil {
			return
		}
		var message struct {
			PhoneEvent
			phoneAnswer
			Event bool   `json:"event"`
			Token string `json:"token"`
		}
		if json.Unmarshal(b[:n], &message) != nil {
			continue
		}
		p.mu.Lock()
		if message.Event {
			p.events = append(p.events, message.PhoneEvent)
		} else {
			p.answers[message.Token] = message.phoneAnswer
		}
		close(p.changed)
		p.changed = make(chan struct{})
		p.mu.Unlock()
	}
}

// until waits until check, called under the lock, is true.
func (p *Phone) until(timeout time.Duration, check func() bool) bool {
	deadline := time.After(timeout)
	for {
		p.mu.Lock()
		ok, changed := check(), p.changed
		p.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-deadline:
			return false
		case <-p.done:
			return false
		}
	}
}

// Command runs a command of baresip's menu and returns what it prints.
func (p *Phone) Command(command, params string) string {
	p.t.Helper()
	p.mu.Lock()
	p.tokens++
	token := strconv.Itoa(p.tokens)
	p.mu.Unlock()
	b, err := json.Marshal(map[string]string{"command": command, "params": params, "token": token})
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(p.control, "%d:%s,", len(b), b); err != nil {
		p.t.Fatalf("phone %s, %s: %v", p.Options.Name, command, err)
	}
	var answer phoneAnswer
	if !p.until(20*time.Second, func() (ok bool) { answer, ok = p.answers[token]; return }) {
		p.t.Fatalf("phone %s does not answer to %s", p.Options.Name, command)
	}
	return answer.Data
}

// Address is the phone's SIP address where it listens itself.
func (p *Phone) Address() string {
	return fmt.Sprintf("sip:%s@%s;transport=%s", p.Options.User, net.JoinHostPort(p.Options.IP, strconv.Itoa(p.Port)), p.Options.Transport)
}

// Dial calls a number or address.
func (p *Phone) Dial(uri string) { p.t.Helper(); p.Command("dial", uri) }

// Accept answers a call that rings.
func (p *Phone) Accept() { p.t.Helper(); p.Command("accept", "") }

// Hangup ends the call.
func (p *Phone) Hangup() { p.t.Helper(); p.Command("hangup", "") }

// Hold and Resume put the call on hold and take it back.
func (p *Phone) Hold()   { p.t.Helper(); p.Command("hold", "") }
func (p *Phone) Resume() { p.t.Helper(); p.Command("resume", "") }

// Press presses keys, one after the other, as a person would.
func (p *Phone) Press(digits string) {
	p.t.Helper()
	for _, d := range digits {
		p.Command("sndcode", string(d))
		time.Sleep(250 * time.Millisecond) // how long a person needs, not a wait for anything
	}
}

// Transfer sends the other side elsewhere (REFER).
func (p *Phone) Transfer(uri string) { p.t.Helper(); p.Command("transfer", uri) }

// Events are the phone's events so far.
func (p *Phone) Events() []PhoneEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

// Saw reports whether an event of the type comes within the time.
func (p *Phone) Saw(timeout time.Duration, kind string) (PhoneEvent, bool) {
	return p.SawNext(timeout, kind, 0)
}

// SawNext is Saw for events after the first `after` ones, see [Phone.Events].
func (p *Phone) SawNext(timeout time.Duration, kind string, after int) (PhoneEvent, bool) {
	var found PhoneEvent
	ok := p.until(timeout, func() bool {
		at := slices.IndexFunc(p.events[after:], func(e PhoneEvent) bool { return e.Type == kind })
		if at >= 0 {
			found = p.events[after+at]
		}
		return at >= 0
	})
	return found, ok
}

// Must waits for an event and fails the test if it does not come.
func (p *Phone) Must(kind string) PhoneEvent {
	p.t.Helper()
	e, ok := p.Saw(40*time.Second, kind)
	if !ok {
		p.t.Fatalf("phone %s has no %s; its events: %+v", p.Options.Name, kind, p.Events())
	}
	return e
}

// Heard is all that the phone has heard in its newest call.
func (p *Phone) Heard() (Sound, error) { return p.dump("dec") }

// Said is all that the phone has said in its newest call.
func (p *Phone) Said() (Sound, error) { return p.dump("enc") }

func (p *Phone) dump(which string) (Sound, error) {
	files, err := filepath.Glob(filepath.Join(p.dir, "dump-*-"+which+".wav"))
	if err != nil {
		return Sound{}, err
	}
	if len(files) == 0 {
		return Sound{}, fmt.Errorf("phone %s has recorded nothing", p.Options.Name)
	}
	return ReadWAV(slices.Max(files))
}

// Listen records what the phone hears from now on, for d.
func (p *Phone) Listen(d time.Duration) (Sound, error) {
	before, err := p.Heard()
	if err != nil {
		before = Sound{}
	}
	end := time.Now().Add(d + 20*time.Second)
	for {
		all, err := p.Heard()
		if err == nil && all.Length() >= before.Length()+d {
			return all.Cut(before.Length(), d), nil
		}
		if time.Now().After(end) {
			return all.Cut(before.Length(), d), fmt.Errorf("phone %s heard %s within %s; %v", p.Options.Name, all.Length()-before.Length(), d+20*time.Second, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
