package outcome

import "time"

// Code is the machine-readable name of an error that lb itself answers with.
// It stands in the problem document, in the X-LB-Error field and in the log.
type Code string

// The codes, as the documentation lists them.
const (
	BadRequest       Code = "bad_request"
	NoRoute          Code = "no_route"
	MethodNotAllowed Code = "method_not_allowed"
	BodyTooLarge     Code = "body_too_large"
	HeaderTooLarge   Code = "header_too_large"
	BackendReset     Code = "backend_reset"
	BackendInvalid   Code = "backend_invalid"
	BackendTimeout   Code = "backend_timeout"
	NoBackend        Code = "no_backend"
	Overloaded       Code = "overloaded"
	// MaxConcurrency, QueueFull and QueueTimeout: no slot of the pool is free,
	// and nobody may wait, too many wait already, or the wait was too long or
	// would be.
	MaxConcurrency Code = "max_concurrency_reached"
	QueueFull      Code = "queue_full"
	QueueTimeout   Code = "queue_timeout"
	// NoSuchProcedure: every backend of a pool made by registration has gone.
	NoSuchProcedure Code = "no_such_procedure"
	// Canceled: the backend was unregistered by force while it worked.
	Canceled           Code = "canceled"
	StorageUnavailable Code = "storage_unavailable"
	// RequestInProgress and KeyReused: another request came under the client's
	// Idempotency-Key, the same one without an answer yet, or a different one.
	RequestInProgress Code = "request_in_progress"
	KeyReused         Code = "idempotency_key_reused"
	// Unauthorized and those that follow are of the admin listener alone.
	Unauthorized    Code = "unauthorized"
	Forbidden       Code = "forbidden"
	MisdirectedHost Code = "misdirected_host"
	NotFound        Code = "not_found"
	// InstanceNotFound and AmbiguousInstance: an id names no backend, or several.
	InstanceNotFound  Code = "instance_not_found"
	AmbiguousInstance Code = "ambiguous_instance"
	// FanoutNotFound: an id names no fan-out, or it has no such delivery.
	// DeliverySettled: the delivery is where that operation cannot move it.
	FanoutNotFound  Code = "fanout_not_found"
	DeliverySettled Code = "delivery_settled"
	// RegistrationInvalid and those that follow refuse a registration.
	RegistrationInvalid  Code = "invalid_registration"
	RegistrationDisabled Code = "registration_disabled"
	AddressNotAllowed    Code = "address_not_allowed"
	InstanceExists       Code = "instance_exists"
	ProcedureExists      Code = "procedure_already_exists"
	OtherPolicy          Code = "procedure_exists_with_different_invocation_policy"
	// ConfigInvalid and those that follow refuse to have another configuration
	// served: the one before goes on.
	ConfigInvalid         Code = "config_invalid"
	ConfigVersionNotFound Code = "config_version_not_found"
	// ConfigNotWritable: there is no configuration file, or it cannot be replaced.
	ConfigNotWritable Code = "config_not_writable"
	Internal          Code = "internal_error"
	// ClientClosed is never sent: it is how the log calls a client that left.
	ClientClosed Code = "client_closed"
)

// StatusClientClosed is the status the log shows for a client that left before
// its answer; nginx made it a custom.
const StatusClientClosed = 499

var codes = map[Code]struct {
	status int
	title  string
}{
	BadRequest:            {400, "The request is not acceptable"},
	NoRoute:               {404, "No route matches the request"},
	MethodNotAllowed:      {405, "The method is not allowed here"},
	BodyTooLarge:          {413, "The request body is too large"},
	HeaderTooLarge:        {431, "The request head is too large"},
	BackendReset:          {502, "The backend closed the connection without an answer"},
	BackendInvalid:        {502, "The backend's answer is not valid HTTP"},
	BackendTimeout:        {504, "The backend did not answer in time"},
	NoBackend:             {503, "No backend is available"},
	Overloaded:            {503, "There is no room for more"},
	StorageUnavailable:    {503, "The storage is not available"},
	MaxConcurrency:        {503, "The backends work on as many requests as they can take"},
	QueueFull:             {503, "Too many requests wait already"},
	QueueTimeout:          {503, "No backend had a free slot in time"},
	NoSuchProcedure:       {503, "Nobody is registered for this procedure"},
	Canceled:              {502, "The backend was taken away while it worked"},
	RegistrationInvalid:   {422, "The registration is not acceptable"},
	RegistrationDisabled:  {403, "Backends may not register here"},
	AddressNotAllowed:     {403, "This address may not be registered"},
	InstanceExists:        {409, "The id is taken"},
	ProcedureExists:       {409, "The procedure allows one backend, and has one"},
	OtherPolicy:           {409, "The procedure exists with another policy"},
	ConfigInvalid:         {422, "The configuration is not acceptable"},
	ConfigVersionNotFound: {404, "There is no such version of the configuration"},
	ConfigNotWritable:     {409, "The configuration file cannot be written"},
	RequestInProgress:     {409, "The first request with this Idempotency-Key has no answer yet"},
	KeyReused:             {422, "Another request came with this Idempotency-Key"},
	FanoutNotFound:        {404, "There is no such fan-out or delivery"},
	DeliverySettled:       {409, "The delivery is not in a state that allows this"},
	Unauthorized:          {401, "A bearer token is needed"},
	Forbidden:             {403, "Cross-site requests are refused"},
	MisdirectedHost:       {421, "This host name is not served here"},
	NotFound:              {404, "There is nothing at this path"},
	InstanceNotFound:      {404, "There is no such instance"},
	AmbiguousInstance:     {409, "Several pools have such an instance: say which with ?pool="},
	Internal:              {500, "Something in lb itself failed"},
	ClientClosed:          {StatusClientClosed, "The client left"},
}

// Status returns the HTTP status that belongs to the code, 500 for one that
// does not exist.
func (c Code) Status() int {
	if e, ok := codes[c]; ok {
		return e.status
	}
	return 500
}

// Title returns the short text that is the same for every occurrence.
func (c Code) Title() string { return codes[c].title }

// Error is an answer that lb makes itself, as a value.
type Error struct {
	Code Code
	// Detail tells what happened this time and what to change.
	Detail string
	// RetryAfter is when it is worth trying again; 0 where that is unknown.
	RetryAfter time.Duration
	// Fields says what is wrong where in the request's body, if that is known.
	Fields []FieldError
	// Err is the cause, for the log; it is not shown to clients.
	Err error
}

// FieldError is one thing that is wrong with a document.
type FieldError struct {
	// Field is where, such as health.interval or labels.zone.
	Field string `json:"field"`
	// Detail says what is wrong and what would be right.
	Detail string `json:"detail"`
}

func (e *Error) Error() string {
	if e.Err != nil {
		return string(e.Code) + ": " + e.Detail + ": " + e.Err.Error()
	}
	return string(e.Code) + ": " + e.Detail
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code that a client gets when its request ended with a
// class that brought no response.
func CodeOf(c Class) Code {
	switch c {
	case Unsent, Starved:
		return NoBackend
	case Reset, Cut:
		return BackendReset
	case Withdrawn:
		return Canceled
	case Timeout:
		return BackendTimeout
	case ClientGone:
		return ClientClosed
	case ClientFault:
		return BadRequest
	default:
		return BackendInvalid
	}
}

// DetailOf returns the words that belong to CodeOf: what happened, and which
// setting has a say in it.
func DetailOf(c Class) string {
	switch c {
	case Unsent:
		return "none of the pool's backends could be reached"
	case Starved:
		return "lb has no free port or file descriptor to reach a backend"
	case Withdrawn:
		return "the backend was unregistered by force while it worked on the request"
	case Reset:
		return "the backend closed the connection before it answered"
	case Timeout:
		return "no response head came within the route's timeout or the pool's transport.response_header"
	case ClientFault:
		return "the request body broke off, is malformed, or paused for longer than timeouts.body_idle of the listener"
	case ClientGone:
		return "the client left"
	default:
		return "the backend answered with something that is not an HTTP response to this request"
	}
}
