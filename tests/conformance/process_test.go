package conformance

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	basepb "chv.invalid/proto/base"
	driverpb "chv.invalid/proto/driver"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-version"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

func itoa(number int) string { return strconv.Itoa(number) }

func TestHandshakeIsNomads(t *testing.T) {
	h := launch(t)
	if got := h.client.NegotiatedVersion(); got != 2 {
		t.Errorf("negotiated version %d, expected 2", got)
	}
	if got := h.client.Protocol(); got != plugin.ProtocolGRPC {
		t.Errorf("protocol %q, expected grpc", got)
	}
	to := h.client.ReattachConfig()
	if to.Addr.Network() != "unix" {
		t.Errorf("network %q, expected unix", to.Addr.Network())
	}
	if info, err := os.Stat(h.socketDir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory of the socket: %v %v, expected mode 0700", info.Mode(), err)
	}
	h.mustEnd()
}

func TestWithoutTheCookieItIsNoPlugin(t *testing.T) {
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: 2, MagicCookieKey: "NOMAD_PLUGIN_MAGIC_COOKIE", MagicCookieValue: "another",
		},
		Plugins: pluginSet, Cmd: command(t), AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
	})
	defer client.Kill()
	if _, err := client.Start(); err == nil {
		t.Error("it served a host that does not know the cookie")
	}
}

func TestHealthIsServing(t *testing.T) {
	h := launch(t)
	if err := h.rpc.Ping(); err != nil {
		t.Errorf("Ping: %v", err)
	}
}

func TestPluginInfoIsAcceptable(t *testing.T) {
	h := launch(t)
	info, err := h.base.PluginInfo(h.context(), &basepb.PluginInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if info.GetType() != basepb.PluginType_DRIVER || info.GetName() != "chv" {
		t.Errorf("plugin %v %q, expected DRIVER chv", info.GetType(), info.GetName())
	}
	if !strings.Contains(fmt.Sprint(info.GetPluginApiVersions()), "v0.1.0") {
		t.Errorf("API versions %v lack v0.1.0", info.GetPluginApiVersions())
	}
	if _, err := version.NewVersion(info.GetPluginVersion()); err != nil {
		t.Errorf("plugin version: %v", err)
	}
}

// Nomad launches a plugin three times at every start; each launch has its own order of calls.
func TestThreeLaunchesOfAnAgent(t *testing.T) {
	fingerprint := launch(t)
	if _, err := fingerprint.base.PluginInfo(fingerprint.context(), &basepb.PluginInfoRequest{}); err != nil {
		t.Fatal(err)
	}
	packed := fingerprint.packed(fakeBlock(t))
	fingerprint.mustEnd()

	validate := launch(t)
	for range 2 {
		request := &basepb.SetConfigRequest{MsgpackConfig: packed, PluginApiVersion: "v0.1.0"}
		if _, err := validate.base.SetConfig(validate.context(), request); err != nil {
			t.Fatalf("SetConfig: %v", err)
		}
	}
	validate.mustEnd()

	serve := launch(t)
	serve.configure(fakeBlock(t))
	if _, err := serve.driver.TaskConfigSchema(serve.context(), &driverpb.TaskConfigSchemaRequest{}); err != nil {
		t.Fatal(err)
	}
	serve.mustEnd()
}

func TestAgentThatKnowsNoInitGetsItsCapabilities(t *testing.T) {
	h := launch(t)
	answer, err := h.driver.Capabilities(h.context(), &driverpb.CapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	have := answer.GetCapabilities()
	if have.GetFsIsolation() != driverpb.DriverCapabilities_IMAGE || have.GetMustCreateNetwork() || !have.GetSendSignals() {
		t.Errorf("capabilities %v", have)
	}
}

func TestSetConfigSaysAllThatIsWrong(t *testing.T) {
	h := launch(t)
	block := fakeBlock(t)
	block["hypervisor"] = "xen"
	block["image_max_size"] = "many"
	packed := h.packed(block)
	_, first := h.base.SetConfig(h.context(), &basepb.SetConfigRequest{MsgpackConfig: packed})
	_, second := h.base.SetConfig(h.context(), &basepb.SetConfigRequest{MsgpackConfig: packed})
	for _, word := range []string{"hypervisor", "xen", "image_max_size", "many"} {
		if !strings.Contains(status.Convert(first).Message(), word) {
			t.Errorf("%q is not in: %v", word, first)
		}
	}
	if status.Convert(first).Message() != status.Convert(second).Message() {
		t.Errorf("another verdict for the same bytes: %v", second)
	}
}

func TestFingerprintAnswersAtOnceAndStaysOpen(t *testing.T) {
	h := launch(t)
	h.configure(fakeBlock(t))
	ctx, cancel := h.streaming()
	began := time.Now()
	stream, err := h.driver.Fingerprint(ctx, &driverpb.FingerprintRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("the first answer took %v: Nomad's HTTP API waits for it", took)
	}
	if first.GetHealthDescription() == "" || !first.GetAttributes()["driver.chv"].GetBoolVal() {
		t.Errorf("first answer %v", first)
	}
	healthy := make(chan *driverpb.FingerprintResponse, 100)
	healthy <- first
	ended := make(chan error, 1)
	go func() {
		for {
			answer, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			healthy <- answer
		}
	}()
	waitFor(t, healthy, 5*time.Second, "a healthy answer", func(answer *driverpb.FingerprintResponse) bool {
		return answer.GetHealth() == driverpb.FingerprintResponse_HEALTHY && answer.GetErr() == ""
	})
	mustStayOpen(t, ended, "Fingerprint")
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("cancelled stream ended with %v", err)
	}
	h.mustEnd()
}

func TestTaskEventsStayOpen(t *testing.T) {
	h := launch(t)
	h.configure(fakeBlock(t))
	ctx, _ := h.streaming()
	stream, err := h.driver.TaskEvents(ctx, &driverpb.TaskEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	mustStayOpen(t, received(stream), "TaskEvents")
}

func TestStdioStaysOpen(t *testing.T) {
	h := launch(t)
	ctx, _ := h.streaming()
	stream, err := h.driver.conn.NewStream(
		ctx, &grpc.StreamDesc{ServerStreams: true}, "/plugin.GRPCStdio/StreamStdio")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stream.RecvMsg(&emptypb.Empty{}) }()
	mustStayOpen(t, ended, "StreamStdio")
	if strings.Contains(h.log.String(), "stdio service not available") {
		t.Error("the host's own stdio stream was refused")
	}
}

func TestKillWithOpenStreamsIsQuick(t *testing.T) {
	h := launch(t)
	h.configure(fakeBlock(t))
	ctx, _ := h.streaming()
	if _, err := h.driver.Fingerprint(ctx, &driverpb.FingerprintRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.driver.TaskEvents(ctx, &driverpb.TaskEventsRequest{}); err != nil {
		t.Fatal(err)
	}
	h.mustEnd()
}

// Nomad 2.0.4 and newer say it twice: to the driver, then to go-plugin's controller.
func TestShutdownOfTheDriverComesBeforeItsEnd(t *testing.T) {
	h := launch(t)
	h.configure(fakeBlock(t))
	if _, err := h.driver.Shutdown(h.context(), &driverpb.ShutdownRequest{}); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if _, err := h.base.PluginInfo(h.context(), &basepb.PluginInfoRequest{}); err != nil {
		t.Errorf("after the driver's Shutdown the process still has to answer: %v", err)
	}
	h.mustEnd()
}

func TestControlCAtTheAgentLeavesThePluginToTheAgent(t *testing.T) {
	h := launch(t)
	if err := h.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if _, err := h.base.PluginInfo(h.context(), &basepb.PluginInfoRequest{}); err != nil {
		t.Errorf("after SIGINT: %v", err)
	}
	h.mustEnd()
}

func TestTermEndsThePluginCleanly(t *testing.T) {
	h := launch(t)
	dir := h.socketDir()
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Second, "the agent notices the end", h.client.Exited)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the socket's directory %s is still there (%v)", dir, err)
	}
}

// The agent was killed; the next one finds the process by its socket and pid.
func TestReattachToALivingPlugin(t *testing.T) {
	first := serving(t)
	one := first.prepare("web", "tick")
	first.start(one)
	one.says(t, "chv test guest: ready")
	second := reattach(t, first.client.ReattachConfig())
	info, err := second.base.PluginInfo(second.context(), &basepb.PluginInfoRequest{})
	if err != nil || info.GetName() != "chv" {
		t.Fatalf("PluginInfo: %v %v", info, err)
	}
	if _, err := second.driver.Init(second.context(), &driverpb.InitRequest{}); err != nil {
		t.Errorf("Init: %v", err)
	}
	ctx, _ := second.streaming()
	stream, err := second.driver.Fingerprint(ctx, &driverpb.FingerprintRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Errorf("Fingerprint: %v", err)
	}
	done := second.wait(one)
	second.pid(one)
	second.stop(one, 10*time.Second)
	if answer := second.ended(done); answer.GetResult().GetExitCode() != 0 {
		t.Errorf("WaitTask: %v", answer)
	}
	if err := second.destroy(one); err != nil {
		t.Errorf("DestroyTask: %v", err)
	}
	second.mustEnd()
	eventually(t, time.Second, "the first client notices the end", first.client.Exited)
	if !first.cmd.ProcessState.Success() {
		t.Errorf("the plugin ended with %v, expected exit code 0", first.cmd.ProcessState)
	}
}

// After its agent was killed, nobody reads the plugin's stdout and stderr any more.
func TestPluginOutlivesTheReadersOfItsPipes(t *testing.T) {
	cmd := command(t)
	cmd.Env = append(cmd.Env, handshake.MagicCookieKey+"="+handshake.MagicCookieValue, "PLUGIN_PROTOCOL_VERSIONS=2")
	stdout := pipe(t, &cmd.Stdout)
	stderr := pipe(t, &cmd.Stderr)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	closeWriters(cmd)
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	text, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Split(strings.TrimSpace(text), "|")
	if len(fields) != 5 || fields[0] != "1" || fields[1] != "2" || fields[2] != "unix" || fields[4] != "grpc" {
		t.Fatalf("handshake line %q", text)
	}
	_ = stdout.Close()
	_ = stderr.Close()

	h := reattach(t, &plugin.ReattachConfig{
		Protocol: plugin.ProtocolGRPC, ProtocolVersion: 2, Addr: unixAddr(fields[3]), Pid: cmd.Process.Pid,
	})
	h.configure(fakeBlock(t))
	for range 20 {
		// Each refusal is a line in the log.
		_, err := h.base.SetConfig(h.context(), &basepb.SetConfigRequest{MsgpackConfig: []byte{0xc1}})
		if code := status.Code(err); code == codes.OK || code == codes.Unavailable {
			t.Fatalf("SetConfig with broken bytes: %v", err)
		}
	}
	if _, err := h.base.PluginInfo(h.context(), &basepb.PluginInfoRequest{}); err != nil {
		t.Errorf("PluginInfo: %v", err)
	}
	h.mustEnd()
	select {
	case err := <-over:
		if err != nil {
			t.Errorf("the plugin ended with %v", err)
		}
	case <-time.After(time.Second):
		t.Error("the plugin still runs")
	}
}

var timestamp = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)$`)

func TestLogLinesAreUnderstoodByTheHost(t *testing.T) {
	h := launch(t)
	h.configure(fakeBlock(t))
	refused := &driverpb.StartTaskRequest{Task: &driverpb.TaskConfig{
		Id: "a/b/00000000", Name: "b", AllocId: "a", AllocDir: "/nowhere", MsgpackDriverConfig: []byte{0x80},
	}}
	if _, err := h.driver.StartTask(h.context(), refused); err == nil {
		t.Fatal("a task without image and kernel was started")
	}
	// More than fits into a line of the log or into the headers that carry a status.
	refused.Task.MsgpackDriverConfig = h.packedTask(map[string]any{"root_mode": strings.Repeat("\"\n\x00ü", 5_000)})
	_, err := h.driver.StartTask(h.context(), refused)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), "root_mode") {
		t.Errorf("a long value: %v", err)
	}
	h.mustEnd()

	levels := map[string]int{}
	for _, entry := range h.lines() {
		// What the host could not read is at level debug as it came.
		if entry.text("timestamp") == "" {
			t.Errorf("the host did not understand: %v", entry.text("@message"))
		}
		levels[entry.text("@level")]++
	}
	if levels["error"] == 0 {
		t.Errorf("the refused task is no line at level error; levels: %v", levels)
	}
	if levels["info"] == 0 {
		t.Errorf("no line at level info; levels: %v", levels)
	}
	for _, text := range strings.Split(strings.TrimSpace(h.stderr.String()), "\n") {
		var entry struct {
			Level     string `json:"@level"`
			Message   string `json:"@message"`
			Timestamp string `json:"@timestamp"`
		}
		if err := json.Unmarshal([]byte(text), &entry); err != nil {
			t.Errorf("on stderr: %v in %s", err, text)
		} else if !timestamp.MatchString(entry.Timestamp) || entry.Message == "" {
			t.Errorf("on stderr: %s", text)
		} else if !strings.Contains(" trace debug info warn error ", " "+entry.Level+" ") {
			t.Errorf("level %q on stderr", entry.Level)
		}
	}
}

// -- what these tests share ---------------------------------------------------------------------------------------

type receiver[T any] interface{ Recv() (*T, error) }

// received reads a stream that is expected to stay silent.
func received[T any](stream receiver[T]) chan error {
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				ended <- err
				return
			}
		}
	}()
	return ended
}

// mustStayOpen fails when a stream ends by itself: Nomad would open it again at once, a thousand times a second.
func mustStayOpen(t *testing.T, ended <-chan error, name string) {
	t.Helper()
	select {
	case err := <-ended:
		t.Fatalf("%s ended by itself: %v", name, err)
	case <-time.After(1500 * time.Millisecond):
	}
}

// waitFor takes values until one is right.
func waitFor[T any](t *testing.T, from <-chan T, within time.Duration, what string, right func(T) bool) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	var seen []T
	for {
		select {
		case value := <-from:
			if right(value) {
				return value
			}
			seen = append(seen, value)
		case <-ctx.Done():
			t.Fatalf("not within %v: %s; seen: %v", within, what, seen)
		}
	}
}

func pipe(t *testing.T, writer *io.Writer) *os.File {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	*writer = write
	return read
}

func closeWriters(cmd *exec.Cmd) {
	_ = cmd.Stdout.(*os.File).Close()
	_ = cmd.Stderr.(*os.File).Close()
}

type unixAddr string

func (unixAddr) Network() string  { return "unix" }
func (a unixAddr) String() string { return filepath.Clean(string(a)) }
