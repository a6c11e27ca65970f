/*
 * The protocol of dasync's workers, for SPIN: two workers, two tasks, one of which awaits the other, and a bad network.
 *
 * The store's law is written here a second time, from what it promises (dasync/core/machine.py and its parts), and so
 * is the life of a worker (dasync/worker.py, runtime/neighbours.py). Each step prints itself, its answer and the rows
 * after it; tests/test_model.py lets the law take the same steps. What is left out stands in README.md.
 *
 * Task A invokes B, or awaits B's promise that somebody else has made; B awaits nothing. Time is no number: whatever
 * takes time may take any. A process that has joined is one incarnation; who comes back is another one.
 *
 * -DFAULTS=, -DCOPIES=, -DRETURNS=   how much may go wrong, see "the network"
 * -DLIVENESS                         with the claim that all is settled, and what only that depends on
 * -DNO_FENCE and others              a planted bug, at its #ifdef below
 */

#define A 0
#define B 1

#ifndef FAULTS
#define FAULTS 1
#elif FAULTS > 2
#error there are ids for two faults only
#endif
#ifndef COPIES
#define COPIES 1
#endif
#ifndef RETURNS
#define RETURNS 1
#endif
#ifdef LIVENESS
#define DOORBELLS
#endif
#define IDS 4    /* incarnations that may ever join: 1 .. IDS; 0 is nobody */
#define GONE 15  /* a worker that has crashed and does not come back */

/* A promise; a task. */
#define ABSENT 0
#define PENDING 1
#define RESOLVED 2
#define REJECTED 3
#define ACQUIRED 2
#define SUSPENDED 3
#define FULFILLED 4

/* The answers, by the numbers of the protocol. EXISTS is a conflict that comes with the promise. */
#define OK 200
#define CREATED 201
#define RUN_AGAIN 300
#define CONFLICT 409
#define EXISTS 410

/* What can be on its way twice. */
#define NOTHING 0
#define FULFIL 1
#define SUSPEND 2
#define RELEASE 3

/* -- the store: it outlives everybody ------------------------------------------------------------------------------ */

byte promise[2];
byte task[2];
byte version[2];
byte holder[2];
bit resumed;          /* of A: what it awaits was settled while it was pending or acquired */
bit callback;         /* B -> A */
bit made;             /* B was made by A */
bit up[IDS + 1];      /* the processes that have joined and of whom nobody has said that they are gone */
byte listens[IDS + 1];  /* to B: 1, fired: 2 */

/* -- the two workers' memories: a crash ends them ------------------------------------------------------------------ */

#define NOWHERE 0  /* where A's code is: it begins */
#define KNOWS_B 1  /* B exists */
#define WAITS 2    /* in memory, until there is news */
#define HAS_B 3    /* B's outcome is known */

byte me[2];
byte claim_a[2];  /* the version that this worker believes to hold; 0: none */
byte claim_b[2];
byte at[2];
bit rung[2];

/* -- the network, and what may still go wrong ---------------------------------------------------------------------- */

byte copy;  /* a command that was sent, or is sent again */
byte copy_task;
byte copy_version;
byte copy_process;
byte copies = COPIES;    /* how often a command is on its way for longer, or the answer to an acquire gets lost */
byte returns = RETURNS;  /* how often a worker gives a task back for want of room */
byte faults = FAULTS;    /* crashes, and leases given away while their holder lives */
byte joined;
byte accuser;  /* 1 + the worker that has seen when the other one, the accused, renewed its lease last; 0: nobody */
byte accused;
bit renewed;   /* the accused has renewed it since */

/* What a step keeps in mind until it is over. A breadth first search (-DSHORTEST) takes no hidden variables. */
#ifdef SHORTEST
#define SCRATCH
#else
#define SCRATCH hidden
#endif
SCRATCH int reply;
SCRATCH byte heard_by;  /* 1 + a worker; 0: nobody */
SCRATCH byte message;
SCRATCH byte settled_twice;
SCRATCH byte stale_claim_settled;
SCRATCH byte stale_claim_moved;
SCRATCH byte claim_was_taken;
SCRATCH byte renewed_lease_was_lost;

#define SETTLED(p) (promise[p] >= RESOLVED)
#define LIVES(w) (me[w] != 0 && me[w] != GONE)
#define DEAD(p) (up[p] && me[0] != p && me[1] != p)
#define HOLDS(t, v, p) (task[t] == ACQUIRED && version[t] == v && holder[t] == p)
#ifdef NO_BURIAL
#define ANYBODY_DEAD 0
#else
#define ANYBODY_DEAD (DEAD(1) || DEAD(2) || DEAD(3))
#endif
#define TASKS(w) (up[me[w]] && (task[A] == PENDING || task[B] == PENDING))
#ifdef NO_RECONCILE
#define UNKNOWN(w, t, claim) 0
#else
#define UNKNOWN(w, t, claim) (task[t] == ACQUIRED && holder[t] == me[w] && claim != version[t])
#endif
#if defined(NO_POLL) || !defined(DOORBELLS)
#define POLL(w) skip
#else
#define POLL(w) rung[w] = (rung[w] -> rung[w] : 1)
#endif
#ifdef DOORBELLS
#define RUNG(w) rung[w]
#define RING(w) rung[w] = 1
#else
#define RUNG(w) 1  /* for safety: it may look at any time */
#define RING(w) skip
#endif
#define SEES_B (SETTLED(B) -> HAS_B : KNOWS_B)
#define DONE (SETTLED(A) && promise[B] != PENDING)

#if defined(NO_FENCE)
#define ACCEPTED(t, v, p) (task[t] != ABSENT)
#elif defined(NO_VERSION_CHECK)
#define ACCEPTED(t, v, p) (task[t] == ACQUIRED && holder[t] == p)
#else
#define ACCEPTED(t, v, p) HOLDS(t, v, p)
#endif

/* A doorbell is a hint: it may get lost. One that rings twice finds nothing to do, as a poll may. Who hears the one
 * that the next step may ring is chosen before the step: a choice after it would read hidden variables, which SPIN does
 * not restore when it comes back for the next choice. (The `skip` after each such step is for SPIN 6.5.2 as well: when
 * it simulates, it lets others in at a d_step that ends an atomic of two statements.) */
inline bell() {
#ifdef DOORBELLS
	if
	:: heard_by = 0
	:: LIVES(0) && !rung[0] -> heard_by = 1
	:: LIVES(1) && !rung[1] -> heard_by = 2
	fi
#else
	skip
#endif
}

/* -- what holds after every step ----------------------------------------------------------------------------------- */

inline begin() {
	reply = OK; message = 0;
	settled_twice = 0; stale_claim_settled = 0; stale_claim_moved = 0; claim_was_taken = 0; renewed_lease_was_lost = 0
}

inline finish() {
	printf("ROWS a=%d,%d,%d,%d,%d b=%d,%d,%d,%d,0 callback=%d", promise[A], task[A], version[A], holder[A], resumed,
		promise[B], task[B], version[B], holder[B], callback);
	printf(" up=%d,%d,%d,%d", up[1], up[2], up[3], up[4]);
	printf(" listens=%d,%d,%d,%d", listens[1], listens[2], listens[3], listens[4]);
	printf(" message=%d\n", message);
#ifdef DOORBELLS
	if
	:: message && heard_by -> rung[heard_by - 1] = 1
	:: else -> skip
	fi;
#endif
	assert(!settled_twice);
	assert(!stale_claim_settled);
#if !defined(NO_FENCE) && !defined(NO_VERSION_CHECK)  /* of their harm, what is worst is to be found */
	assert(!stale_claim_moved);
#endif
	assert(!claim_was_taken);
	assert(!renewed_lease_was_lost);
	assert(!callback || promise[B] == PENDING);
	assert(task[A] != SUSPENDED || callback);
	assert((task[A] == FULFILLED) == SETTLED(A) && (task[B] == FULFILLED) == SETTLED(B));
	assert(task[A] != ACQUIRED || up[holder[A]]);
	assert(task[B] != ACQUIRED || up[holder[B]])
}

/* -- the law ------------------------------------------------------------------------------------------------------- */

inline resume_a() {
	if
#ifdef DOUBLE_RESUME
	:: task[A] == PENDING || task[A] == ACQUIRED ->
		claim_was_taken = (task[A] == ACQUIRED);
		task[A] = PENDING; holder[A] = 0; resumed = 0; message = 1
#else
	:: task[A] == PENDING || task[A] == ACQUIRED -> resumed = 1
#endif
	:: task[A] == SUSPENDED ->
#ifndef LOST_RESUME
		task[A] = PENDING; message = 1
#else
		skip
#endif
	:: else -> skip
	fi
}

inline fire(p) {
	if
	:: listens[p] == 1 -> listens[p] = 2; message = 1
	:: else -> skip
	fi
}

inline settle(t, state) {
	settled_twice = settled_twice || promise[t] != PENDING;
	promise[t] = state; task[t] = FULFILLED; holder[t] = 0;
	if
	:: t == A -> resumed = 0
	:: else ->
		if
		:: callback -> callback = 0; resume_a()
		:: else -> skip
		fi;
		if
		:: made && task[A] == ACQUIRED -> listens[holder[A]] = 1  /* who runs A is told */
		:: else -> skip
		fi;
		fire(1); fire(2); fire(3); fire(4)
	fi
}

inline fulfil(t, v, p, state) {
	if
	:: ACCEPTED(t, v, p) && promise[t] == PENDING ->
		stale_claim_settled = !HOLDS(t, v, p);
		settle(t, state)
	:: !(ACCEPTED(t, v, p) && promise[t] == PENDING) && task[t] == FULFILLED && version[t] == v -> skip
	:: else -> reply = CONFLICT
	fi;
	printf("STEP fulfil p=%d t=%d v=%d state=%d -> %d\n", p, t, v, state, reply)
}

/* Of A, which awaits B. */
inline suspend(v, p) {
	if
	:: ACCEPTED(A, v, p) && task[A] == ACQUIRED ->
		stale_claim_moved = !HOLDS(A, v, p);
		if
#ifndef BLIND_SUSPEND
		:: resumed || SETTLED(B) -> resumed = 0; reply = RUN_AGAIN
#endif
		:: else -> task[A] = SUSPENDED; holder[A] = 0; resumed = 0; callback = 1
		fi
	:: !(ACCEPTED(A, v, p) && task[A] == ACQUIRED) && task[A] == SUSPENDED && version[A] == v -> skip
	:: else -> reply = CONFLICT
	fi;
	printf("STEP suspend p=%d v=%d -> %d\n", p, v, reply)
}

inline send_again(t) {
	task[t] = PENDING; holder[t] = 0; message = 1;
	if
	:: t == A -> resumed = 0
	:: else -> skip
	fi
}

inline release(t, v, p) {
	if
	:: ACCEPTED(t, v, p) && task[t] == ACQUIRED -> stale_claim_moved = !HOLDS(t, v, p); send_again(t)
	:: else -> reply = CONFLICT
	fi;
	printf("STEP release p=%d t=%d v=%d -> %d\n", p, t, v, reply)
}

inline acquire(t, p) {
	if
	:: up[p] ->
		task[t] = ACQUIRED; version[t]++; holder[t] = p;
		if
		:: t == A -> resumed = 0
		:: else -> skip
		fi
	:: else -> reply = CONFLICT
	fi;
	printf("STEP acquire p=%d t=%d -> %d\n", p, t, reply)
}

/* Under A's fence, together with who waits for it: A itself (callback), or the process that runs A (listener). */
inline create_b(v, p, waiter) {
	if
	:: !(ACCEPTED(A, v, p) && task[A] == ACQUIRED) -> reply = CONFLICT
	:: ACCEPTED(A, v, p) && task[A] == ACQUIRED && promise[B] == ABSENT ->
		stale_claim_moved = !HOLDS(A, v, p);
		promise[B] = PENDING; task[B] = PENDING; message = 1; reply = CREATED; made = 1;
		if
		:: waiter == 1 -> callback = 1
		:: else -> listens[p] = 1
		fi
	:: else ->
		reply = EXISTS;
#ifdef CREATE_STORES_WAITER
		if
		:: waiter == 1 -> callback = 1
		:: else -> skip
		fi
#endif
	fi;
	printf("STEP create_b p=%d v=%d waiter=%d -> %d\n", p, v, waiter, reply)
}

inline listen(p) {
	if
	:: SETTLED(B) -> skip
	:: !SETTLED(B) && !up[p] -> reply = CONFLICT
	:: else ->
		if
		:: listens[p] == 0 -> listens[p] = 1
		:: else -> skip
		fi
	fi;
	printf("STEP listen p=%d -> %d\n", p, reply)
}

inline call_back() {
	if
	:: task[A] == FULFILLED -> skip
	:: task[A] != FULFILLED && promise[B] == PENDING ->
		reply = (callback -> OK : CREATED);
		callback = 1
	:: else -> resume_a()
	fi;
	printf("STEP call_back -> %d\n", reply)
}

/* `still`: the process has not renewed its lease since the one who says this has seen it, or it is dead for certain. */
inline leave(p, still, silent) {
	if
#ifdef NO_RENEWAL_CHECK
	:: up[p] ->
		renewed_lease_was_lost = !still;
#else
	:: up[p] && still ->
#endif
		up[p] = 0; listens[p] = 0;
		if
		:: task[A] == ACQUIRED && holder[A] == p -> send_again(A)
		:: else -> skip
		fi;
		if
		:: task[B] == ACQUIRED && holder[B] == p -> send_again(B)
		:: else -> skip
		fi
	:: else -> skip
	fi;
	printf("STEP leave p=%d silent=%d -> %d\n", p, silent, reply)
}

/* By somebody outside, who holds nothing. Who runs B is told. */
inline settle_b(state) {
	if
#ifndef SETTLE_AGAIN
	:: promise[B] == PENDING ->
#else
	:: promise[B] != ABSENT ->
#endif
		if
		:: task[B] == ACQUIRED -> listens[holder[B]] = 1
		:: else -> skip
		fi;
		settle(B, state);
	:: else -> skip
	fi;
	printf("STEP settle_b state=%d -> %d\n", state, reply)
}

/* By somebody outside. */
inline create(t) {
	if
	:: promise[t] == ABSENT -> promise[t] = PENDING; task[t] = PENDING; message = 1; reply = CREATED
	:: else -> skip
	fi;
	printf("STEP create t=%d -> %d\n", t, reply)
}

/* -- a worker ------------------------------------------------------------------------------------------------------ */

inline acquit() {
	accuser = 0; accused = 0; renewed = 0
}

inline fault() {
	faults--;
	if
	:: !faults -> acquit()  /* nobody's lease is given away any more while he lives */
	:: else -> skip
	fi
}

inline forget(w) {
	claim_a[w] = 0; claim_b[w] = 0; at[w] = NOWHERE; rung[w] = 0;
	if
	:: accuser == w + 1 -> acquit()
	:: else -> skip
	fi
}

inline join(w) {
	joined++; me[w] = joined; up[joined] = 1; RING(w);
	printf("STEP join p=%d -> %d\n", joined, CREATED)
}

inline drop(w, t) {
	if
	:: t == A -> claim_a[w] = 0; at[w] = NOWHERE
	:: else -> claim_b[w] = 0
	fi
}

/* Whoever started a worker starts it again. The worker beats, and looks for what it was not told of. */
proctype Timer(byte w) {
end:
	do
	:: d_step { me[w] == 0 && !DONE -> begin(); join(w); finish() }
	:: atomic { LIVES(w) && !DONE && UNKNOWN(w, A, claim_a[w]) ->
		bell(); d_step { begin(); release(A, version[A], me[w]); finish() } skip }
	:: atomic { LIVES(w) && !DONE && UNKNOWN(w, B, claim_b[w]) ->
		bell(); d_step { begin(); release(B, version[B], me[w]); finish() } skip }
	:: d_step { LIVES(w) && !DONE && !UNKNOWN(w, A, claim_a[w]) && !UNKNOWN(w, B, claim_b[w]) ->
		begin();
		if
		:: up[me[w]] ->
			printf("STEP heartbeat p=%d -> %d\n", me[w], OK);
			if
			:: accused == me[w] -> renewed = 1
			:: else -> skip
			fi
		:: else ->
			printf("STEP heartbeat p=%d -> %d\n", me[w], CONFLICT);
			finish();
			forget(w);
			join(w)
		fi;
		POLL(w);
		finish() }
	od
}

inline bury(w, p) {
	LIVES(w) && RUNG(w) && DEAD(p) -> bell(); d_step { begin(); leave(p, 1, 0); finish() } skip
}

/* It was rung, or it is time to look: bury the dead, acquire, read the news. */
proctype Serve(byte w) {
end:
	do
#ifndef NO_BURIAL
	:: atomic { bury(w, 1) }
	:: atomic { bury(w, 2) }
#if FAULTS > 1  /* who joins after the last fault does not die */
	:: atomic { bury(w, 3) }
#endif
#endif
	:: d_step { LIVES(w) && RUNG(w) && up[me[w]] && task[A] == PENDING ->
		begin(); acquire(A, me[w]); claim_a[w] = version[A]; at[w] = NOWHERE; finish() }
	:: d_step { LIVES(w) && RUNG(w) && up[me[w]] && task[B] == PENDING ->
		begin(); acquire(B, me[w]); claim_b[w] = version[B]; finish() }
	:: d_step { LIVES(w) && RUNG(w) && up[me[w]] && task[A] == PENDING && copies ->  /* the answer gets lost */
		copies--; begin(); acquire(A, me[w]); finish() }
	:: d_step { LIVES(w) && RUNG(w) && up[me[w]] && task[B] == PENDING && copies ->
		copies--; begin(); acquire(B, me[w]); finish() }
	:: d_step { LIVES(w) && RUNG(w) && listens[me[w]] == 2 ->
		begin(); listens[me[w]] = 0; claim_b[w] = 0;
		if
		:: at[w] == KNOWS_B || at[w] == WAITS -> at[w] = HAS_B
		:: else -> skip
		fi;
		printf("STEP receive p=%d -> %d\n", me[w], reply);
		finish() }
#ifdef DOORBELLS
	:: d_step { LIVES(w) && RUNG(w) && !TASKS(w) && listens[me[w]] != 2 && !ANYBODY_DEAD -> rung[w] = 0 }
#endif
	od
}

/* An answer to A's worker: it goes on, as the promise that is in the answer lets it, or it holds A no longer. */
inline hear(w, next) {
	if
	:: reply == CONFLICT -> drop(w, A)
	:: else -> at[w] = next
	fi
}

inline post(w, kind, t, v) {
	copies--; copy = kind; copy_task = t; copy_version = v; copy_process = me[w]
}

/* The code of the tasks that the worker believes to hold. It is not asked whether it does: that is the zombie. */
proctype Run(byte w) {
end:
	do
	:: atomic { LIVES(w) && claim_a[w] && at[w] == NOWHERE ->
		bell(); d_step { begin(); create_b(claim_a[w], me[w], 0); hear(w, SEES_B); finish() } skip }
	:: atomic { LIVES(w) && claim_a[w] && at[w] == NOWHERE ->
		bell(); d_step { begin(); create_b(claim_a[w], me[w], 1); hear(w, SEES_B); finish() } skip }
	:: d_step { LIVES(w) && claim_a[w] && at[w] == KNOWS_B ->
		begin(); listen(me[w]); hear(w, (SETTLED(B) -> HAS_B : WAITS)); finish() }
	:: atomic { LIVES(w) && claim_a[w] && at[w] == KNOWS_B && !callback && !resumed ->
		bell(); d_step { begin(); call_back(); hear(w, SEES_B); finish() } skip }
	:: d_step { LIVES(w) && claim_a[w] && at[w] == KNOWS_B ->
		begin(); suspend(claim_a[w], me[w]);
		if
		:: reply == RUN_AGAIN -> at[w] = NOWHERE
		:: else -> drop(w, A)
		fi;
		finish() }
	:: d_step { LIVES(w) && claim_a[w] && at[w] == WAITS && returns -> returns--; at[w] = KNOWS_B }
	:: d_step { LIVES(w) && claim_a[w] && at[w] == HAS_B ->
		begin(); fulfil(A, claim_a[w], me[w], promise[B]); drop(w, A); finish() }
	:: atomic { LIVES(w) && claim_b[w] ->
		bell(); d_step { begin(); fulfil(B, claim_b[w], me[w], RESOLVED); drop(w, B); finish() } skip }
	:: atomic { LIVES(w) && claim_a[w] && returns ->
		bell(); d_step { returns--; begin(); release(A, claim_a[w], me[w]); drop(w, A); finish() } skip }
	:: atomic { LIVES(w) && claim_b[w] && returns ->
		bell(); d_step { returns--; begin(); release(B, claim_b[w], me[w]); drop(w, B); finish() } skip }
	/* A command is sent, and nobody knows when it arrives: it may be said again meanwhile, or thought better of. */
	:: d_step { LIVES(w) && claim_a[w] && copies && !copy && at[w] == HAS_B -> post(w, FULFIL, A, claim_a[w]) }
	:: d_step { LIVES(w) && claim_b[w] && copies && !copy -> post(w, FULFIL, B, claim_b[w]) }
	:: d_step { LIVES(w) && claim_a[w] && copies && !copy && at[w] == KNOWS_B -> post(w, SUSPEND, A, claim_a[w]) }
	:: d_step { LIVES(w) && claim_a[w] && copies && !copy -> post(w, RELEASE, A, claim_a[w]) }
	:: d_step { LIVES(w) && claim_b[w] && copies && !copy -> post(w, RELEASE, B, claim_b[w]) }
	od
}

/* -- the world ----------------------------------------------------------------------------------------------------- */

inline arrived() {
	copy = NOTHING; copy_task = 0; copy_version = 0; copy_process = 0
}

proctype Network() {
end:
	do
	:: atomic { copy ->
		bell();
		d_step {
			begin();
			if
			:: copy == FULFIL && copy_task == A -> fulfil(A, copy_version, copy_process, promise[B])
			:: copy == FULFIL && copy_task == B -> fulfil(B, copy_version, copy_process, RESOLVED)
			:: copy == SUSPEND -> suspend(copy_version, copy_process)
			:: copy == RELEASE && copy_task == A -> release(A, copy_version, copy_process)
			:: copy == RELEASE && copy_task == B -> release(B, copy_version, copy_process)
			fi;
			arrived();
			finish()
		}
		skip }
#ifdef LIVENESS
	:: d_step { copy -> arrived() }  /* it gets lost; for safety: it takes for ever */
#endif
	od
}

inline crash(w, stays) {
	fault(); forget(w); me[w] = stays;
	printf("STEP crash w=%d\n", w)
}

inline look(w) {
	accuser = w + 1; accused = me[1 - w]; renewed = 0;
	printf("STEP look p=%d\n", accused)
}

/* The accuser says that a lease is over. Of one that lives and has not renewed it, that is a fault: a pause. */
inline accuse() {
	begin();
	leave(accused, !renewed, 1);
	if
	:: !renewed && accused == me[2 - accuser] -> fault()
	:: else -> skip
	fi;
	acquit();
	finish()
}

proctype Chaos() {
end:
	do
	:: d_step { faults && LIVES(0) -> crash(0, 0) }
	:: d_step { faults && LIVES(1) -> crash(1, 0) }
#ifdef LIVENESS
	:: d_step { faults && LIVES(0) && me[1] != GONE -> crash(0, GONE) }
	:: d_step { faults && LIVES(1) && me[0] != GONE -> crash(1, GONE) }
#endif
	:: d_step { faults && !accuser && LIVES(0) && LIVES(1) && up[me[1]] -> look(0) }
	:: d_step { faults && !accuser && LIVES(0) && LIVES(1) && up[me[0]] -> look(1) }
	:: atomic { accuser -> bell(); d_step { accuse() } skip }
	od
}

/* Somebody outside invokes A, and maybe B, and maybe settles it. */
proctype Client() {
	atomic { bell(); d_step { begin(); create(A); finish() } skip }
	if
	:: true -> atomic { bell(); d_step { begin(); create(B); finish() } skip }
	:: skip
	fi;
	if
	:: atomic { promise[B] != ABSENT -> bell(); d_step { begin(); settle_b(REJECTED); finish() } skip }
#ifdef LIVENESS
	:: skip  /* for safety: it takes for ever */
#endif
	fi
}

init {
	d_step { begin(); join(0); finish() }
	d_step { begin(); join(1); finish() }
	atomic { run Timer(0); run Timer(1); run Serve(0); run Serve(1); run Run(0); run Run(1); run Network(); run Chaos();
		run Client() }
}

#ifdef LIVENESS
ltl every_promise_is_settled {
	([] (promise[A] == PENDING -> <> SETTLED(A))) && ([] (promise[B] == PENDING -> <> SETTLED(B)))
}
#endif
